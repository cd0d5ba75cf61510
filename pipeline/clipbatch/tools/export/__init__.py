"""What other servers can serve: the image tower as ONNX, and a model repository for NVIDIA Triton."""
