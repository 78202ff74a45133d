"""Examples of apps and trainers. Each is complete, small and tested."""
