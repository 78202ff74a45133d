"""Shares of a GPU, as Ray counts them: for inference, a training worker and a scoring worker, together one GPU."""

TRAINING = 0.51
"""Share of a training worker: more than half, so that no two of them are placed on one GPU."""
SCORING = 0.09
"""Share of a scoring worker."""
CLICKS = 0.4
"""Share of all inference replicas of a GPU together."""
