"""Inference: the `InferTask` protocol and, on layers above it, prompts, network, energy and methods."""
