"""SeriesFacts: what is known of an image in an archive beside its volume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayapp.imaging.dicom_seg_source import obstacle
from rayapp.imaging.dicom_series import Slice

FACTS = "facts.json"
"""File with an image's `SeriesFacts`, beside its volume."""


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """Facts from a retrieved series' headers that its volume does not hold.

    Attributes:
        frame_of_reference: FrameOfReferenceUID; "" if there is none, or not one for all slices.
        obstacle: the reason why no DICOM SEG can be made for it; None if one can.
        instances: SOPInstanceUIDs of an image that is a part of its series; empty for one that is all of it.
    """

    frame_of_reference: str
    obstacle: str | None
    instances: Sequence[str] = ()

    @classmethod
    def of(cls, slices: Sequence[Slice], instances: Sequence[str] = ()) -> SeriesFacts:
        """The facts from an image's slices."""
        frames = {piece.frame_of_reference for piece in slices}
        frame = frames.pop() if len(frames) == 1 else ""
        return cls(frame_of_reference=frame, obstacle=obstacle(slices), instances=instances)

    @classmethod
    def beside(cls, volume: Path) -> SeriesFacts | None:
        """The facts kept beside a volume; None if there are none, as of one that has just been evicted."""
        try:
            return cls(**json.loads((volume.parent / FACTS).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
