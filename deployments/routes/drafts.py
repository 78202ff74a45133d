"""`/viewer/draft`: unsaved labels of our OHIF extension, kept in the click log as they change.

The extension sends each change within seconds, so that a closed tab, a crash or a restart of the server loses nothing.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.access import AsAnnotator, Service
from deployments.problems import problems
from rayapp.datastore.interfaces import ClickEvent
from rayapp.imaging import mask_codec
from rayapp.protocol import Route, checked_name
from rayapp.responses import ViewerDraft
from rayapp.serving.draft import BEGIN, EDIT, Draft, drafts_of

router = APIRouter(tags=["viewer"], responses=problems(400, 404, 413, 422, 503))

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]


class Entry(BaseModel):
    """One change of a draft. `request` is an id chosen by the client; sent again, it counts once.

    A `begin` has the `base` (number of the revision, 0 for none), the `names` of the structures by value and the whole
    label as `labels`; or only a `source`, the draft of another tab that it goes on from. An `edit` has the changed
    boxes of the label (`labels`) and of the annotator's strokes (`strokes`), packed masks in base64, and in `about`
    what the client wants to know of it again. A `saved` has the new `base`.
    """

    model_config = ConfigDict(extra="forbid")

    request: Key
    kind: Literal["begin", "edit", "undo", "redo", "saved"]
    base: int = Field(0, ge=0)
    names: list[Annotated[str, Field(max_length=200)]] = Field([], max_length=255)
    labels: str = ""
    strokes: str = ""
    source: Key | None = None
    about: dict[str, Any] = {}

    @model_validator(mode="after")
    def _masks(self) -> Entry:
        for packed in (self.labels, self.strokes):
            if packed:
                mask_codec.check_text(packed)
        if self.kind == BEGIN and not self.source and not self.labels:
            raise ValueError("a draft begins with labels, or goes on from a source")
        if self.kind == EDIT and not self.labels and not self.strokes:
            raise ValueError("an edit changes labels or strokes")
        return self


class Entries(BaseModel):
    """Changes of one draft, in order. `draft` is its key, chosen by the client at random."""

    model_config = ConfigDict(extra="forbid")

    image: str
    draft: Key
    client_id: str | None = Field(None, max_length=200)
    entries: list[Entry] = Field(max_length=1000)


@router.post(Route.VIEWER_DRAFT)
async def append(body: Entries, services: Service, user: AsAnnotator) -> None:
    """Log changes of a draft, durably."""
    record = await services.datastore.image(checked_name(body.image, "image"))
    now = time.time()
    await services.datastore.append_events(
        [
            ClickEvent(
                image_id=record.id,
                kind=entry.kind,
                payload={"draft": body.draft, **entry.model_dump(exclude={"kind"}, exclude_unset=True)}
                | ({"base": entry.base, "names": entry.names} if entry.kind == BEGIN else {}),
                user=user.name,
                client_id=body.client_id,
                ts=now,
            )
            for entry in body.entries
        ]
    )


@router.get(Route.VIEWER_DRAFT)
async def newest(
    services: Service, user: AsAnnotator, image: Annotated[str, Query()], draft: Annotated[str, Query()] = ""
) -> ViewerDraft | None:
    """The caller's draft of an image that changed last and is not saved yet, null if there is none; or the one with
    this key, saved or not."""
    record = await services.datastore.image(checked_name(image, "image"))
    drafts = drafts_of(await services.datastore.events(record.id, user=user.name))
    wanted = [one for one in drafts if (one.key == draft if draft else one.unsaved)]
    return _answer(wanted[-1]) if wanted else None


def _answer(draft: Draft) -> ViewerDraft:
    return ViewerDraft(
        draft=draft.key,
        base=draft.base,
        names=list(draft.names),
        start=draft.start,
        done=list(draft.done),
        undone=list(draft.undone),
        ts=draft.ts,
    )
