"""Prompts: parsed from requests, lowered to clicks, encoded as guidance channels or scribble maps."""
