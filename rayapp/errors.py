"""Errors that callers may receive; each class stands for one way to react.

The gateway maps each to one HTTP status with the body `{"detail": text}`. They take one string argument, so that they
can be pickled and cross process borders unchanged.
"""

from __future__ import annotations

import errno

_DISK = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; make it writable",
    errno.EACCES: "this server has no permission; change it",
    errno.EPERM: "this server has no permission; change it",
    errno.EIO: "the disk reports an error; check it",
}


def disk_reason(error: OSError) -> str:
    """The reason why a file cannot be read or written, and what to do."""
    return _DISK.get(error.errno or 0) or error.strerror or type(error).__name__


FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the system's errors for a disk or a quota without room."""


class RayappError(Exception):
    """Base class. `status` is the HTTP status that the gateway answers."""

    status = 500

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(RayappError):
    """The request is malformed: correct it."""

    status = 400


class NotSignedIn(RayappError):
    """The request has no valid key: sign in."""

    status = 401


class NotAllowed(RayappError):
    """The caller's role is too low: ask an administrator."""

    status = 403


class NotFound(RayappError):
    """There is no such image, label, model, strategy, session or job: choose one that is listed."""

    status = 404


class Disabled(RayappError):
    """The feature is switched off on this server."""

    status = 406


class Conflict(RayappError):
    """The current state does not allow it, for example because the name is taken: change the state, or the request."""

    status = 409


class TooLarge(RayappError):
    """The body, or a size that a file declares, exceeds a limit: send less, or raise the setting named in the text."""

    status = 413


class Unreadable(RayappError):
    """An uploaded image, label map or model is damaged or unsupported: nothing was stored."""

    status = 422


class GridMismatch(Unreadable):
    """A label map is not on its image's voxel grid: nothing was stored."""


class Superseded(RayappError):
    """A newer click of the same annotator on the same image superseded this one."""

    status = 409


class AlreadyRunning(RayappError):
    """A job of this kind is running: wait, or stop it."""

    status = 429


class ModelBroken(RayappError):
    """A model could not be loaded or run; the text names it. The other models are served."""

    status = 503


class ArchiveAway(RayappError):
    """The DICOM archive is unreachable or its answer is invalid: retry later. Saved labels are kept here meanwhile."""

    status = 502


class ArchiveSlow(ArchiveAway):
    """The DICOM archive did not answer in time: retry, or raise `dicomweb.timeout`."""

    status = 504


class AppBroken(RayappError):
    """The app's own code failed: the text names the file, the line and what was expected there."""


class Busy(RayappError):
    """A component is overloaded or restarting: retry after `retry_after` seconds."""

    status = 503
    retry_after = 1


class DiskFull(Busy):
    """A file could not be written for want of room: nothing was stored; free some space, then retry."""

    status = 507
    retry_after = 30
