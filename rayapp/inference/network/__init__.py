"""Running a network on a volume: grids, sliding windows, transforms, sampling and cancellation."""
