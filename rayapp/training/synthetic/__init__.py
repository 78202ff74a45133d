"""Training of the promptable network on random scenes with simulated prompts."""
