"""A MONAI image reader that reads with rayapp, for the served image and for formats that MONAI reads with ITK."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.data
import monai.transforms.io.array as loading
import numpy as np
from monai.data import ImageReader

from rayapp.compat.served_image import ServedImage
from rayapp.geometry import spacing
from rayapp.imaging.reader import EXTENSIONS, read_volume
from rayapp.imaging.volume import Volume

MAX_BYTES = 1 << 36
"""Largest decoded image; the datastore refused larger ones."""


class VolumeReader(ImageReader):  # type: ignore[misc] # MONAI has no types
    """Reads volumes with their affine in RAS.

    Args:
        image: The served image, which is not read again.
        straight: Give the affine without rotation, for transforms that take slices for channels.
    """

    def __init__(self, image: ServedImage | None = None, *, straight: bool = False, **_: Any) -> None:
        super().__init__()
        self._image, self._straight = image, straight

    def verify_suffix(self, filename: Any) -> bool:
        """True for the files that rayapp reads."""
        names = [filename] if isinstance(filename, (str, Path)) else list(filename)
        return all(str(name).lower().endswith(tuple(EXTENSIONS)) or Path(name).is_dir() for name in names)

    def read(self, data: Any, **_: Any) -> Volume:
        """Read one file or folder."""
        path = str(data[0] if isinstance(data, Sequence) and not isinstance(data, str) else data)
        if self._image is not None and path == self._image.path:
            return self._image.volume
        return read_volume(Path(path), max_bytes=MAX_BYTES)

    def get_data(self, img: Volume) -> tuple[np.ndarray, dict[str, Any]]:
        """The voxels, (I, J, K) or (I, J, K, C), and the metadata that MONAI's transforms need."""
        affine = np.diag([*spacing(img.affine), 1.0]) if self._straight else np.array(img.affine, dtype=np.float64)
        one = img.channels == 1
        array = np.array(img.array[0] if one else np.moveaxis(img.array, 0, -1), dtype=np.float32, order="C")
        meta = {
            "affine": affine,
            "original_affine": affine.copy(),
            "spatial_shape": np.array(img.shape),
            "original_channel_dim": float("nan") if one else -1,
            "space": "RAS",
        }
        return array, meta


def register() -> None:
    """Let MONAI's LoadImaged read with this reader what it would read with ITK, unless ITK is installed."""
    if importlib.util.find_spec("itk") is None:
        monai.data.ITKReader = VolumeReader
        loading.SUPPORTED_READERS["itkreader"] = VolumeReader
