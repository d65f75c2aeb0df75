"""PyTorch's compiler ahead of time (AOTInductor): the GPU backend where there is no TensorRT.

backend.py           what the backend is, and how a network becomes machine code and weights
fused/               the networks made of few operations, with kernels of their own
"""
