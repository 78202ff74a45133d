"""Prompts: parsed from requests, lowered to clicks, drawn as guidance channels or scribble maps."""
