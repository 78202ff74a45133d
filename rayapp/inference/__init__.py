"""Inference: the `InferTask` protocol, and on one-way floors above it prompts, network, energy and methods."""
