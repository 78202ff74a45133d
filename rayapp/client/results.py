"""InferResult: the response of a model. JSON responses are typed in `rayapp.responses`."""

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
"""Largest decoded label map, in bytes."""


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """A model's response. The mask is in `body` or in the file `path`; both are None for a model that returns none.

    Attributes:
        params: `label_names`, `latencies` (seconds by stage) and more.
        filename: The mask's file name, which tells its format by the extension.
        media_type: The mask's media type.
        body: The encoded mask, unless it was streamed to a file.
        path: The file that the mask was streamed to.
    """

    params: dict[str, Any]
    filename: str | None = None
    media_type: str | None = None
    body: bytes | None = None
    path: Path | None = None

    def labels(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Decode the mask: a label map, (I, J, K), on the image's voxel grid as its file stores it.

        Raises:
            Unreadable: If there is no mask or it is damaged.
        """
        from rayapp.imaging import mask_codec, reader  # sending needs none of the packages that reading needs

        if self.path is not None:
            return reader.read_segmentation(self.path, max_bytes=MAX_LABELS).array
        if self.body is None:
            raise Unreadable("the response has no mask: the model makes none, or output=json was asked for")
        if self.media_type == MASK_MEDIA_TYPE:
            return mask_codec.decode(self.body)
        _, extension = reader.split_ext(self.filename or "")
        with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
            file = Path(folder) / f"mask{extension}"
            file.write_bytes(self.body)
            return reader.read_segmentation(file, max_bytes=MAX_LABELS).array
