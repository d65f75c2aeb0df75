"""The networks again, with the same weights, made of few memory-friendly operations for one NVIDIA GPU.

operations.py      the vocabulary: each operation's plain PyTorch form is its specification and what a CPU runs
kernels.py         the same operations as Triton kernels for CUDA; hopper.py: some of them again, for Hopper
unet.py, autoencoder.py    the networks written in that vocabulary; fp8.py: the UNet with products in FP8
convolution.py     the operator that compiled packages call by name
twins.py           how packages take kernels that PyTorch cannot compile itself
"""
