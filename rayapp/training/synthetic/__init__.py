"""Random scenes, the prompts that people give in them, and the training of the promptable network on both."""
