"""MONAI Label's exception, which apps raise for requests that they refuse."""

from __future__ import annotations

from enum import StrEnum

from rayapp.errors import BadRequest


class MONAILabelError(StrEnum):
    """Kinds of MONAI Label's errors."""

    SERVER_ERROR = "SERVER_ERROR"
    INVALID_INPUT = "INVALID_INPUT"
    UNKNOWN_ERROR = "UNKNOWN_ERROR"
    CLASS_INIT_ERROR = "CLASS_INIT_ERROR"
    MODEL_IMPORT_ERROR = "MODEL_IMPORT_ERROR"
    INFERENCE_ERROR = "INFERENCE_ERROR"
    TRANSFORM_ERROR = "TRANSFORM_ERROR"
    INFERENCE_FAILED = "INFERENCE_FAILED"
    APP_INIT_ERROR = "APP_INIT_ERROR"
    APP_TRAIN_FAILED = "APP_TRAIN_FAILED"


class MONAILabelException(BadRequest):
    """A request that the app refuses.

    Attributes:
        error: The kind of error.
        msg: The text for the caller.
    """

    def __init__(self, error: MONAILabelError, msg: str = "") -> None:
        super().__init__(msg or str(error))
        self.error, self.msg = error, msg

    def __reduce__(self) -> tuple[type[MONAILabelException], tuple[MONAILabelError, str]]:
        return type(self), (self.error, self.msg)


class ImageNotFoundException(MONAILabelException):
    """An image that is not in the datastore."""


class LabelNotFoundException(MONAILabelException):
    """A label that is not in the datastore."""
