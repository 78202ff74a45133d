"""Segmentation from prompts alone: appearance models, graph cuts, random walks and local refinement."""
