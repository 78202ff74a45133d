"""Messages between the gateway and the replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayapp.datastore.interfaces import Author, ClickEvent
from rayapp.protocol import Output
from rayapp.serving.interaction import Interaction


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of an interaction, or a look at its mask.

    Attributes:
        interaction: as it was opened, or later; the turn goes on from the newest entry of its log.
        event: the entry to log before the network runs; sent again, it is logged once. None to look only.
        until: look at the mask as of this entry of the log; None for the newest.
        onto: token of the mask that the client holds, "" for none; the answer may be the changes to that mask.
    """

    interaction: Interaction
    event: ClickEvent | None = None
    until: int | None = None
    onto: str = ""


@dataclass(frozen=True, kw_only=True)
class SaveAs:
    """The tag of the image under which a prediction is saved, and its author."""

    tag: str
    author: Author


@dataclass(frozen=True, kw_only=True)
class InferCall:
    """One request to a model.

    Attributes:
        model: its name.
        key: the image, for caching and affinity: its id, or `session/<id>` or `upload/<digest>` (an id has no slash).
        params: prompts and options as the client sent them.
        output: what the reply's body is.
        ext: format of the mask (".nrrd", ".nii.gz", …); None for that of the image's own file.
        path: the image's file, which the server wrote itself, where it is not the datastore's.
        mask: an uploaded label map: scribbles, or a mask to start from.
        user: name of the annotator.
        client_id: id of their program; None for one that does not say.
        turn: makes it a turn of an interaction, whose prompts take the place of `params`.
        version: of the model; None for the version that is served.
        save: keep the prediction as a label.
    """

    model: str
    key: str
    params: Mapping[str, Any] = field(default_factory=dict)
    output: Output = Output.ALL
    ext: str | None = None
    path: Path | None = None
    mask: Path | None = None
    user: str = "admin"
    client_id: str | None = None
    turn: Turn | None = None
    version: str | None = None
    save: SaveAs | None = None


@dataclass(frozen=True, kw_only=True)
class InferReply:
    """The answer: the encoded mask (None with `output=json`), its extension, and the result's `params`."""

    body: bytes | None
    ext: str
    params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class HandedOut:
    """An image that an annotator is about to work on.

    Attributes:
        key, path: as of `InferCall`.
        model: the model they will use, if it is known.
        user, client_id: the annotator.
    """

    key: str
    path: Path | None = None
    model: str | None = None
    user: str = "admin"
    client_id: str | None = None

    @property
    def annotator(self) -> tuple[str, str | None]:
        """The annotator, who with the next image needs this one no more."""
        return self.user, self.client_id
