"""`monailabel.config.settings`, for the few values that apps read."""

from __future__ import annotations

from types import SimpleNamespace

settings = SimpleNamespace(
    MONAI_LABEL_TRACKING_ENABLED=False,
    MONAI_LABEL_TRACKING_URI="",
    MONAI_ZOO_SOURCE="",
    MONAI_ZOO_REPO="",
    MONAI_ZOO_AUTH_TOKEN="",
    MONAI_LABEL_DATASTORE_FILE_EXT=["*.nii.gz", "*.nii", "*.nrrd"],
)
"""Defaults; rayapp's own settings are those of `rayapp start`."""
