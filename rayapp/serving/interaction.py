"""Interaction: one annotator's prompts on one image with one model, as a fold over the click log.

Undo and redo are events too: the log only grows, and whoever reads it comes to the same prompts. Pure; nothing is
remembered but in the value itself.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rayapp.datastore.interfaces import ClickEvent, Info
from rayapp.errors import Conflict, NotFound

OPEN, PROMPT, UNDO, REDO = "open", "prompt", "undo", "redo"
WITHDRAW = "withdraw"
"""Takes back a prompt that the model could not work with."""

_ID = re.compile(r"(\d{1,18})-([0-9a-f]{16})")


def opening_event(*, image_id: str, model: str, user: str, client_id: str | None, ts: float) -> ClickEvent:
    """The event that opens an interaction; its key is random, so that nobody can guess it."""
    return ClickEvent(
        image_id=image_id,
        kind=OPEN,
        payload={"interaction": secrets.token_hex(8)},
        model=model,
        user=user,
        client_id=client_id,
        ts=ts,
    )


def opened_at(interaction_id: str) -> int:
    """The log's number of the event that opened it, which its id begins with. Raises NotFound."""
    found = _ID.fullmatch(interaction_id)
    if found is None:
        raise no_interaction(interaction_id)
    return int(found[1])


def no_interaction(interaction_id: str) -> NotFound:
    """There is none of this id."""
    return NotFound(f"there is no interaction {interaction_id[:60]!r}: open one")


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """The interaction after event number `step` of the log.

    `done` are the prompts in force, oldest first, `undone` those that a redo brings back, the last one first. A prompt
    holds `step` and any of `clicks` (points by label), `curves`, `marks`, `extremes`, `start`, `roi`, `label`, `slice`
    and `reset`.
    """

    id: str
    image_id: str
    model: str
    user: str
    step: int
    done: tuple[Info, ...] = ()
    undone: tuple[Info, ...] = ()
    requests: frozenset[str] = frozenset()

    @classmethod
    def of(cls, event: ClickEvent) -> Interaction:
        """As its opening event, which is in the log, leaves it. Raises NotFound for another kind of event."""
        key = str(event.payload.get("interaction"))
        if event.kind != OPEN:
            raise no_interaction(f"{event.seq}")
        return cls(
            id=f"{event.seq}-{key}",
            image_id=event.image_id,
            model=event.model or "",
            user=event.user,
            step=event.seq,
        )

    @property
    def key(self) -> str:
        """What its events carry."""
        return self.id.partition("-")[2]

    def event(self, kind: str, prompt: Info, *, request: str, client_id: str | None, ts: float) -> ClickEvent:
        """The event, not logged yet, that goes on from here. A `request` counts once, however often it is logged."""
        return ClickEvent(
            image_id=self.image_id,
            kind=kind,
            payload={"interaction": self.key, "request": request, **prompt},
            model=self.model,
            user=self.user,
            client_id=client_id,
            ts=ts,
        )

    def own(self, events: Iterable[ClickEvent]) -> list[ClickEvent]:
        """The events that are of this interaction."""
        return [event for event in events if event.payload.get("interaction") == self.key and event.user == self.user]

    def after(self, event: ClickEvent) -> Interaction:
        """The interaction after one more of its own events. An undo or redo of nothing changes nothing."""
        request = str(event.payload.get("request"))
        if request in self.requests:
            return replace(self, step=event.seq)
        done, undone = self.done, self.undone
        if event.kind == PROMPT:
            done, undone = (*done, prompt_of(event)), ()
        elif event.kind == UNDO and done:
            done, undone = done[:-1], (*undone, done[-1])
        elif event.kind == REDO and undone:
            done, undone = (*done, undone[-1]), undone[:-1]
        elif event.kind == WITHDRAW:
            done = tuple(prompt for prompt in done if prompt["step"] != event.payload.get("withdrawn"))
        return replace(self, step=event.seq, done=done, undone=undone, requests=self.requests | {request})

    def check(self, kind: str) -> None:
        """Raise Conflict if there is nothing to undo, or to redo."""
        if (kind == UNDO and not self.done) or (kind == REDO and not self.undone):
            raise Conflict(f"there is nothing to {kind}")

    @property
    def params(self) -> Info:
        """The prompts in force as a request's `params` (`rayapp.inference.prompts.parse`): clicks, curves and strokes
        add up, each drawn on the structure that was worked on then; of all else the last one holds."""
        last: Info = {}
        clicks: dict[str, list[Any]] = {}
        drawn: dict[str, list[Info]] = {}
        extremes: dict[str, Any] = {}
        for prompt in self.done:
            if prompt.get("reset"):
                last, clicks, drawn, extremes = {}, {}, {}, {}
            last.update({name: prompt[name] for name in ("roi", "label", "slice", "start") if name in prompt})
            label = last.get("label")
            for name, points in prompt.get("clicks", {}).items():
                clicks.setdefault(name, []).extend(points)
            for points in prompt.get("curves", ()):
                drawn.setdefault("curves", []).append({"label": label, "points": points})
            if prompt.get("marks"):
                drawn.setdefault("marks", []).append({"label": label, "packed": prompt["marks"]})
            extremes.update(prompt.get("extremes", {}))
        return {**last, **clicks, **drawn, **({"extremes": extremes} if extremes else {})}


def prompt_of(event: ClickEvent) -> Info:
    """What the annotator said with an event."""
    said = {name: value for name, value in event.payload.items() if name not in ("interaction", "request")}
    return {**said, "step": event.seq}
