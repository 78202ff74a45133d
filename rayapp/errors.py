"""Every error a caller can meet, named for what to do next.

The gateway maps each to one HTTP status with the body `{"detail": text}`; inside the house they are plain exceptions
that cross process borders unchanged (one string argument, so they pickle).
"""

from __future__ import annotations


class RayappError(Exception):
    """Base of all of them. `status` is the HTTP status the gateway answers."""

    status = 500

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(RayappError):
    """The request is malformed: correct it and send it again."""

    status = 400


class NotSignedIn(RayappError):
    """No valid token came with the request: sign in."""

    status = 401


class NotAllowed(RayappError):
    """The caller's role does not reach so far: ask an administrator."""

    status = 403


class NotFound(RayappError):
    """No such image, label, model, strategy, session or job: look at what is listed."""

    status = 404


class Disabled(RayappError):
    """The feature is switched off on this server."""

    status = 406


class Conflict(RayappError):
    """The state forbids it now (already running, already exists)."""

    status = 409


class TooLarge(RayappError):
    """The body or a declared size is over the cap: send less, or raise the flag that the text names."""

    status = 413


class Unreadable(RayappError):
    """An uploaded file is not a whole, sane image, label map or model: nothing was stored."""

    status = 422


class GridMismatch(Unreadable):
    """A label map does not lie on its image's voxel grid: nothing was stored."""


class Superseded(RayappError):
    """A newer click of the same user on the same image replaced this one."""

    status = 409


class AlreadyRunning(RayappError):
    """A job of this kind runs already: wait, or stop it."""

    status = 429


class ModelBroken(RayappError):
    """The model's file could not be loaded: the text says which; the other models serve."""

    status = 503


class ArchiveAway(RayappError):
    """The DICOM archive does not answer, or wrongly: what was saved is kept here; try again when it is back."""

    status = 502


class ArchiveSlow(ArchiveAway):
    """The DICOM archive did not answer in time: try again, or raise `dicomweb.timeout`."""

    status = 504


class AppBroken(RayappError):
    """The app's own code is wrong: the text names the file, the line and what was expected there."""


class Busy(RayappError):
    """All replicas are full: try again after `retry_after` seconds."""

    status = 503
    retry_after = 1
