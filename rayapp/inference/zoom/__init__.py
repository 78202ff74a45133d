"""Adaptive zoom: views of an image at several sizes, the promptable network's answers in them, and the choice of
one.
"""
