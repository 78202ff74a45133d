"""Background jobs: the queue, and what training, scoring and batch inference do."""
