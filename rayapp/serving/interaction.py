"""An interaction: one annotator's prompts on one image with one model, as a fold over the click log.

Undo and redo are events too: the log is append-only, and every reader derives the same prompts from it. Immutable.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rayapp.datastore.interfaces import ClickEvent, Info
from rayapp.errors import Conflict, NotFound
from rayapp.inference.prompts.parse import BACKGROUND

OPEN, PROMPT, UNDO, REDO = "open", "prompt", "undo", "redo"
WITHDRAW = "withdraw"
"""Event that removes a prompt which the model rejected."""
REFUSABLE = 100
"""Maximum number of prompts, from the newest back, that may be withdrawn."""

_ID = re.compile(r"(\d{1,18})-([0-9a-f]{16})")


def opening_event(*, image_id: str, model: str, user: str, client_id: str | None, ts: float) -> ClickEvent:
    """The event that opens an interaction. Its key is random, so that it cannot be guessed."""
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
    """Sequence number of the opening event, from the interaction's id. Raises NotFound for a malformed id."""
    match = _ID.fullmatch(interaction_id)
    if match is None:
        raise no_interaction(interaction_id)
    return int(match[1])


def no_interaction(interaction_id: str) -> NotFound:
    """The error for an unknown id."""
    return NotFound(f"no interaction {interaction_id[:60]!r}: open one")


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """The state of an interaction after event number `step` of the log.

    Attributes:
        id: `<sequence number of the opening event>-<key>`.
        image_id, model, user: as it was opened.
        step: sequence number of its last event.
        done: prompts in force, oldest first. A prompt has `step` and any of `clicks` (points by label), `curves`,
            `marks`, `extremes`, `start`, `roi`, `label`, `slice`, `size` and `reset`.
        undone: prompts that a redo restores; the next one to restore is the last.
        requests: ids of the requests that were logged.
        emptied: for each of the last prompts its step and the redo list that it discarded, which is restored if the
            prompt is withdrawn.
    """

    id: str
    image_id: str
    model: str
    user: str
    step: int
    done: tuple[Info, ...] = ()
    undone: tuple[Info, ...] = ()
    requests: frozenset[str] = frozenset()
    emptied: tuple[tuple[int, tuple[Info, ...]], ...] = ()

    @classmethod
    def of(cls, event: ClickEvent) -> Interaction:
        """The interaction after its opening event, which has a sequence number. Raises NotFound for other events."""
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
        """The key by which its events are recognised."""
        return self.id.partition("-")[2]

    def event(self, kind: str, prompt: Info, *, request: str, client_id: str | None, ts: float) -> ClickEvent:
        """The next event, not logged yet. The same `request` counts once, however often it is logged."""
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
        """Those of the events that belong to this interaction."""
        return [event for event in events if event.payload.get("interaction") == self.key and event.user == self.user]

    def after(self, event: ClickEvent) -> Interaction:
        """The interaction after one more of its own events. Undo or redo with nothing to undo or redo has no effect."""
        request = str(event.payload.get("request"))
        if request in self.requests:
            return replace(self, step=event.seq)
        done, undone, emptied = self.done, self.undone, self.emptied
        if event.kind == PROMPT:
            done, undone, emptied = (*done, prompt_of(event)), (), (*emptied, (event.seq, undone))[-REFUSABLE:]
        elif event.kind == UNDO and done:
            done, undone = done[:-1], (*undone, done[-1])
        elif event.kind == REDO and undone:
            done, undone = (*done, undone[-1]), undone[:-1]
        elif event.kind == WITHDRAW:
            step = event.payload.get("withdrawn")
            # It may have been undone before it was refused, and then have been discarded by another prompt.
            done, undone = _without(step, done), _without(step, undone)
            emptied = tuple((each, _without(step, had)) for each, had in emptied)
            undone, emptied = _given_back(step, undone, emptied)
        return replace(
            self, step=event.seq, done=done, undone=undone, requests=self.requests | {request}, emptied=emptied
        )

    def check(self, kind: str) -> None:
        """Raise Conflict if there is nothing to undo, or to redo."""
        if (kind == UNDO and not self.done) or (kind == REDO and not self.undone):
            raise Conflict(f"there is nothing to {kind}")

    @property
    def params(self) -> Info:
        """The prompts in force as a request's `params`; see `rayapp.inference.prompts.parse`.

        Clicks, curves and strokes accumulate, each on the structure that was active at the time. Of several clicks on a
        voxel, and of everything else, the last one counts. Strokes and sizes come with the number of clicks made before
        them.
        """
        last: Info = {}
        clicks: dict[str, list[tuple[int, Any]]] = {}  # with the number of the prompt that each came with
        sizes: dict[int, int] = {}  # by the number of the prompt
        drawn: dict[str, list[Info]] = {}
        drawn_at: list[int] = []
        extremes: dict[str, Any] = {}
        for number, prompt in enumerate(self.done):
            if prompt.get("reset"):
                last, clicks, sizes, drawn, drawn_at, extremes = {}, {}, {}, {}, [], {}
            last.update({name: prompt[name] for name in ("roi", "label", "slice", "start") if name in prompt})
            label = last.get("label")
            for name, points in prompt.get("clicks", {}).items():
                for other in clicks.values():
                    other[:] = [(at, point) for at, point in other if point not in points]
                clicks.setdefault(name, []).extend((number, point) for point in points)
            for points in prompt.get("curves", ()):
                drawn.setdefault("curves", []).append({"label": label, "points": points})
            if prompt.get("marks"):
                drawn.setdefault("marks", []).append({"label": label, "packed": prompt["marks"]})
                drawn_at.append(number)
            extremes.update(prompt.get("extremes", {}))
            if "size" in prompt:
                sizes[number] = prompt["size"]

        def before(number: int, names: Iterable[str]) -> dict[str, int]:
            return {name: sum(at < number for at, _ in clicks[name]) for name in names}

        for strokes, number in zip(drawn.get("marks", ()), drawn_at, strict=True):
            counts = before(number, clicks)
            strokes.update({"after": counts} if any(counts.values()) else {})
        structures = [name for name in clicks if name != BACKGROUND]
        chosen = {str(sum(before(number + 1, structures).values())): size for number, size in sizes.items()}
        points_by_name = {name: [point for _, point in points] for name, points in clicks.items()}
        others = {name: value for name, value in (("extremes", extremes), ("size", chosen)) if value}
        return {**last, **points_by_name, **drawn, **others}

    @property
    def turns(self) -> tuple[Info, ...]:
        """The prompts in force one by one, in the order in which they were made, each as a request's `params`.

        As in `params`, a reset drops earlier prompts and only the last box counts. Masks to start from are left out.
        """
        since = max((number for number, prompt in enumerate(self.done) if prompt.get("reset")), default=0)
        prompts = self.done[since:]
        boxed = max((number for number, prompt in enumerate(prompts) if "roi" in prompt), default=-1)
        return tuple(
            replace(self, done=({name: prompt[name] for name in prompt if _in_turn(name, number == boxed)},)).params
            for number, prompt in enumerate(prompts)
        )


def _without(step: Any, prompts: tuple[Info, ...]) -> tuple[Info, ...]:
    """The prompts except the one of this step."""
    return tuple(prompt for prompt in prompts if prompt["step"] != step)


def _given_back(
    step: Any, undone: tuple[Info, ...], emptied: tuple[tuple[int, tuple[Info, ...]], ...]
) -> tuple[tuple[Info, ...], tuple[tuple[int, tuple[Info, ...]], ...]]:
    """Restore the redo list that the prompt of this step discarded, as the prompt is withdrawn.

    Returns:
        (`undone`, `emptied`): the list can be redone again, or is part of what the next prompt discarded.
    """
    steps = [each for each, _ in emptied]
    if step not in steps:
        return undone, emptied
    place = steps.index(step)
    before, after = emptied[:place], emptied[place + 1 :]
    if not after:
        return (*emptied[place][1], *undone), before
    following, had = after[0]
    return undone, (*before, (following, (*emptied[place][1], *had)), *after[1:])


def _in_turn(name: str, boxed: bool) -> bool:
    """True if a field of a prompt belongs to its turn; `boxed` is True for the last prompt with a box."""
    return name != "start" and (name != "roi" or boxed)


def prompt_of(event: ClickEvent) -> Info:
    """The prompt of an event, with its `step`."""
    prompt = {name: value for name, value in event.payload.items() if name not in ("interaction", "request")}
    return {**prompt, "step": event.seq}
