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
    """One turn of an interaction, or a request for its mask.

    Attributes:
        interaction: the interaction as it was opened, or a later state; the turn continues from the newest entry of its
            log.
        event: the entry to log before the network runs; sent again, it is logged once. None to get the mask only.
        until: give the mask as of this entry of the log; None for the newest.
        onto: token of the mask that the client has, "" for none; the answer may consist of the changes to that mask.
        last_event: id of the last `Stage` that the client has of the answer to this turn, which goes on behind it; ""
            for none.
    """

    interaction: Interaction
    event: ClickEvent | None = None
    until: int | None = None
    onto: str = ""
    last_event: str = ""


@dataclass(frozen=True, kw_only=True)
class SaveAs:
    """The tag under which a prediction is saved, and its author."""

    tag: str
    author: Author


@dataclass(frozen=True, kw_only=True)
class InferCall:
    """One request to a model.

    Attributes:
        model: the model's name.
        key: the image, for caching and affinity: its id, or `session/<id>` or `upload/<digest>` (an id has no slash).
        params: prompts and options as the client sent them.
        output: content of the reply's body.
        ext: format of the mask (".nrrd", ".nii.gz", …); None for that of the image's own file.
        path: the image's file, if it is not the datastore's but one that the server wrote.
        mask: an uploaded label map: scribbles, or a mask to start from.
        user: name of the annotator.
        client_id: id of their program; None if it sends none.
        turn: the turn of an interaction, whose prompts replace `params`; None for a single call.
        version: version of the model; None for the one in production.
        save: save the prediction as a label.
        request: id of the HTTP request, for the log.
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
    request: str = ""


@dataclass(frozen=True, kw_only=True)
class InferReply:
    """The answer.

    Attributes:
        body: the encoded mask; None with `output=json`.
        ext: its extension.
        params: of the result.
        event: id of the `Stage`, of an answer to a turn; else "".
        caches: for each cache that was asked, by its name, whether it had what was needed.
    """

    body: bytes | None
    ext: str
    params: Mapping[str, Any]
    event: str = ""
    caches: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HandedOut:
    """An image that an annotator is about to work on.

    Attributes:
        key, path: as in `InferCall`.
        model: the model they will use, if known.
        user, client_id: the annotator.
    """

    key: str
    path: Path | None = None
    model: str | None = None
    user: str = "admin"
    client_id: str | None = None

    @property
    def annotator(self) -> tuple[str, str | None]:
        """Identifies the annotator, who no longer needs this image once they get the next one."""
        return self.user, self.client_id
