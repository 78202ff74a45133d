"""Views of an image at many sizes, the promptable network's answers in them, and the choice among these."""
