"""InferResult: a model's answer. JSON answers are typed in `rayapp.responses`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import Unreadable
from rayapp.protocol import MASK_MEDIA_TYPE

MAX_LABELS = 4 << 30
"""Bytes that a decoded label map may have."""


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """A model's answer.

    `params` holds `label_names`, `latencies` and more. The mask is in `body`, or in the file `path` if one was asked
    for; both are None for a model that answers JSON alone. `filename` carries the mask's extension.
    """

    params: dict[str, Any]
    filename: str | None = None
    media_type: str | None = None
    body: bytes | None = None
    path: Path | None = None

    def labels(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The mask's voxels, shape (I, J, K), on the image's grid as its file lays it out.

        Raises Unreadable if there is no mask or it is damaged.
        """
        from rayapp.imaging import mask_codec, reader  # sending needs none of the packages that reading needs

        if self.path is not None:
            return reader.read_segmentation(self.path, max_bytes=MAX_LABELS).array
        if self.body is None:
            raise Unreadable("the model answered no mask")
        if self.media_type == MASK_MEDIA_TYPE:
            return mask_codec.decode(self.body)
        _, extension = reader.split_ext(self.filename or "")
        with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
            file = Path(folder) / f"mask{extension}"
            file.write_bytes(self.body)
            return reader.read_segmentation(file, max_bytes=MAX_LABELS).array
