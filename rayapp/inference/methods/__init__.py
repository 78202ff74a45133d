"""The inference methods that ship, each an `InferTask`."""
