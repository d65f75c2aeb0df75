"""TensorRT: the backend that this project exists for. ``tensorrt`` 10.14 and later, or TensorRT for RTX.

backend.py    what the backend is, what its engines need to load, and whether they do
library.py    the two libraries and everything in which they differ
builder.py    ONNX graph -> plan
runner.py     plan -> engine on a GPU
"""
