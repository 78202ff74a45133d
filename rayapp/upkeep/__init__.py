"""Upkeep of what is stored: backup, restore, check, removal of what nothing refers to, and erasure of one image."""
