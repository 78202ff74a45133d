"""Training: the `TrainTask` protocol, recipes and the training loop."""
