"""An inference replica: live model versions, open volumes, prefetching, the fold over the click log."""
