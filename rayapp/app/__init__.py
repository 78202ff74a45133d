"""Apps: the base class that app authors extend, and the validation of what their apps bring."""

from rayapp.app.label_app import LabelApp

__all__ = ["LabelApp"]
