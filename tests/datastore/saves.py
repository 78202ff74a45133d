"""Saving a label the way the gateway does: stage, write, save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayapp.datastore.interfaces import Author, LabelRecord
from rayapp.datastore.local import LocalDatastore

AUTHOR = Author(user="ann", client_id="slicer-1")
Open = Callable[..., LocalDatastore]


def save(
    store: Any, image_id: str = "ct_a", tag: str = "final", body: bytes = b"label", ext: str = ".nii.gz", **info: Any
) -> LabelRecord:
    staged = store.stage(ext)
    staged.write_bytes(body)
    record: LabelRecord = store.save_label(image_id, tag, staged, ext, info=info, author=AUTHOR)
    return record


def counts(store: Any) -> dict[str, Any]:
    """The status without the sizes."""
    status: dict[str, Any] = store.status()
    assert set(status.pop("storage")) == {"index", "log", "revisions", "revision_bytes", "free"}
    return status
