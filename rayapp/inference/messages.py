"""InferCall and InferReply: one inference between the gateway and a replica."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayapp.protocol import Output


@dataclass(frozen=True, kw_only=True)
class InferCall:
    """What the gateway asks of a replica.

    `key` names the image for caching and affinity: the image id, or `session/<id>`, or `upload/<digest>` (a slash can
    never occur in an image id). `path` is set for the last two: a file that the server itself wrote.
    `ext` is the wanted result extension (`.nrrd`, `.nii.gz`, …). `mask` is an uploaded label map (scribbles).
    """

    model: str
    key: str
    params: Mapping[str, Any] = field(default_factory=dict)
    output: Output = Output.ALL
    ext: str = ".nrrd"
    path: Path | None = None
    mask: Path | None = None
    user: str = "admin"
    client_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class InferReply:
    """The encoded mask (None with `output=json`), the extension it is encoded in, and the result's `params`."""

    body: bytes | None
    ext: str
    params: Mapping[str, Any]
