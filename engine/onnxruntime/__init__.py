"""ONNX Runtime: the backend that runs everywhere, on CPUs and with the onnxruntime-gpu wheel on CUDA.

backend.py    what the backend is, and its engines: one session each
rewrite.py    the exported graph -> operations that only the CUDA provider has
patterns.py   shapes of nodes that a rewrite looks for
layout.py     channels last
"""
