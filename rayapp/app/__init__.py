"""What an app is: the base class that authors extend, and the checks of what they bring."""

from rayapp.app.label_app import LabelApp

__all__ = ["LabelApp"]
