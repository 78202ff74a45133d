"""InferCall, InferReply and HandedOut: what goes between the gateway and a replica."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayapp.datastore.interfaces import ClickEvent
from rayapp.protocol import Output
from rayapp.serving.interaction import Interaction


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of an interaction, which it goes on from: `interaction` as it was opened, or later.

    `event` is logged before the network runs, once, however often the turn is sent; without one the mask as of event
    `until` (None: now) is asked for, and nothing is logged. `onto` is the token of the mask that the client holds, ""
    for none: the answer may be the changes to that.
    """

    interaction: Interaction
    event: ClickEvent | None = None
    until: int | None = None
    onto: str = ""


@dataclass(frozen=True, kw_only=True)
class InferCall:
    """What the gateway asks of a replica.

    `key` names the image for caching and affinity: the image id, or `session/<id>`, or `upload/<digest>` (a slash can
    never occur in an image id). `path` is set for the last two: a file that the server itself wrote.
    `ext` is the wanted result extension (`.nrrd`, `.nii.gz`, …). `mask` is an uploaded label map (scribbles).
    `turn` makes it a turn of an interaction, whose prompts take the place of `params`. `version` is the model's version
    to run, None for the one that serves.
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
    turn: Turn | None = None
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class InferReply:
    """The encoded mask (None with `output=json`), the extension it is encoded in, and the result's `params`."""

    body: bytes | None
    ext: str
    params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class HandedOut:
    """An image that somebody is about to work on: `key` and `path` as of `InferCall`, `model` if it is known which."""

    key: str
    path: Path | None = None
    model: str | None = None
    user: str = "admin"
    client_id: str | None = None

    @property
    def whose(self) -> tuple[str, str | None]:
        """Whoever gets another image does not need this one any more."""
        return self.user, self.client_id
