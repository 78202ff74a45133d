"""Running a network on a volume: grids, normalisation, sliding windows, transforms, restoration and cancellation."""
