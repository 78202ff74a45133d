"""Shares of a GPU as Ray counts them: for clicks, for a training worker and for a scoring worker, together one GPU."""

TRAINING = 0.51
"""Of one training worker; over a half, so that no two of them are placed on one GPU."""
SCORING = 0.09
"""Of one scoring worker."""
CLICKS = 0.4
"""Of all replicas on a GPU together."""
