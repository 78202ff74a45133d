"""A draft: one annotator's unsaved label of one image, as a fold over the click log.

Every change of the label on the annotator's screen is an entry: a brush stroke, the answer to a prompt, undo and redo.
Immutable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rayapp.datastore.interfaces import ClickEvent, Info
from rayapp.serving.interaction import REDO, UNDO

BEGIN, EDIT, SAVED = "begin", "edit", "saved"
"""Kinds of entries: the draft begins with a label, voxels change, the label was saved. Undo and redo are as in
interactions."""
KINDS = (BEGIN, EDIT, UNDO, REDO, SAVED)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The state of a draft after entry number `step` of the log.

    Attributes:
        key: chosen by the program that made the draft.
        base: number of the label's revision that it began with or was last saved as, 0 for none.
        names: structures in the order of their values, from 1.
        start: the label that it began with, a packed mask in base64.
        done: edits in force, oldest first, as they were logged.
        undone: edits that a redo restores; the next one to restore is the last.
        step: sequence number of its last entry.
        ts: when that was logged, in Unix seconds.
        unsaved: True if it changed since it was last saved.
        requests: ids of the requests that were logged.
    """

    key: str
    base: int = 0
    names: tuple[str, ...] = ()
    start: str = ""
    done: tuple[Info, ...] = ()
    undone: tuple[Info, ...] = ()
    step: int = 0
    ts: float = 0.0
    unsaved: bool = False
    requests: frozenset[str] = frozenset()

    def after(self, event: ClickEvent) -> Draft:
        """The draft after one more of its entries. Undo or redo with nothing to undo or redo has no effect."""
        given = event.payload
        request = str(given["request"])
        if request in self.requests:
            return self
        now = replace(self, step=event.seq, ts=event.ts, requests=self.requests | {request})
        if event.kind == BEGIN:
            return replace(now, base=given["base"], names=tuple(given["names"]), start=given["labels"])
        if event.kind == SAVED:
            return replace(now, base=given["base"], unsaved=False)
        names = tuple(given.get("names", self.names))
        if event.kind == EDIT:
            edit = {name: value for name, value in given.items() if name not in ("draft", "names", "base")}
            base = given.get("base", self.base)
            return replace(now, base=base, names=names, done=(*self.done, edit), undone=(), unsaved=True)
        if event.kind == UNDO and self.done:
            return replace(now, done=self.done[:-1], undone=(*self.undone, self.done[-1]), unsaved=True)
        if event.kind == REDO and self.undone:
            return replace(now, done=(*self.done, self.undone[-1]), undone=self.undone[:-1], unsaved=True)
        return now


def drafts_of(events: Iterable[ClickEvent]) -> list[Draft]:
    """The drafts among one user's entries on one image, the one that changed last at the end.

    A draft that another one goes on from, as of its last entry, is left out. A draft whose beginning is missing is
    left out too.
    """
    drafts: dict[str, Draft] = {}
    continued: dict[str, int] = {}  # number of the entry as of which another draft goes on from this one
    for event in events:
        key = event.payload.get("draft")
        if key is None or event.kind not in KINDS:
            continue
        if event.kind == BEGIN and (source := _source(drafts, event.payload)):
            continued[source.key] = source.step
            drafts[key] = replace(source, key=key, step=event.seq, ts=event.ts, requests=frozenset())
        elif event.kind == BEGIN or key in drafts:
            drafts[key] = drafts.get(key, Draft(key=key)).after(event)
    current = (draft for draft in drafts.values() if continued.get(draft.key, -1) < draft.step)
    return sorted(current, key=lambda draft: draft.step)


def _source(drafts: Mapping[str, Draft], given: Mapping[str, Any]) -> Draft | None:
    """The draft that a beginning goes on from."""
    return drafts.get(str(given.get("source")))
