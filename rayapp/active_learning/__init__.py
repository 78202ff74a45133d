"""Active learning: strategies, scoring methods and simulated annotators."""
