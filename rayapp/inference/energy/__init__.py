"""Segmentation from prompts alone: intensity models, graph cuts, random walks and local refinement."""
