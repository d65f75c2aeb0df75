"""The networks again, with the same weights, made of few memory-friendly operations for one NVIDIA GPU.

:mod:`~v2v.engine.inductor.fused.operations` is the vocabulary: each operation has a plain PyTorch form, which is its
specification and what a CPU runs, and a Triton kernel (:mod:`~v2v.engine.inductor.fused.kernels`) for CUDA.
:mod:`~v2v.engine.inductor.fused.unet` and :mod:`~v2v.engine.inductor.fused.autoencoder` are the networks written in that vocabulary.
"""
