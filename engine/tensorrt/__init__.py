"""TensorRT: the backend that this project exists for. ``tensorrt`` 10.14 and later, or TensorRT for RTX.

backend.py     what the backend is, what its engines need to load, and whether they do
library.py     the two libraries and everything in which they differ
rewrites.py    convolutions over frames in two dimensions; doublings.py: doubling and convolution in one
rehearsed.py   what other numbers cost, on a small window; fp8.py, bf16.py: graphs in such numbers
builder.py     ONNX graph -> plan
runner.py      plan -> engine on a GPU
"""
