"""Upkeep of a store: backup, restoration, check, removal of unreferenced files, and erasure of one image."""
