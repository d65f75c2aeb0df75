"""PyTorch in, graphs out: the networks, their weights and their ONNX export."""
