"""The heuristic planner: proposes how to train and serve from a survey of the data and of the machine."""
