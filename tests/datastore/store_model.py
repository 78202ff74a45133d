"""The state that a studies folder must have after what the store and another program did to it: the machine's model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.datastore.stepped_commit import Work

Key = tuple[str, str]
"""Image and tag of a label."""
ANYTHING = object()
"""Instead of a content or an info that the model does not say."""


@dataclass
class Pending:
    """A call whose change is not committed yet; `committed` tells the model of it."""

    work: Work
    what: str
    committed: Callable[[Exception | None, Any], None]
    steps: int = 0


@dataclass
class Model:
    """The state that the folder must have.

    Attributes:
        current: content of each label; None for none.
        unseen: contents that another program has written and nothing of ours has noticed so far.
        required: (image, tag, content, author) that must be revisions.
        possible: those that may be.
        changes: number of changes of each label, by whomever.
        notes: what we set last in the info of each image, and each label.
        marks: what another program wrote last into the document, by image.
        ours: labels whose newest content is an acknowledged save.
        deleted: labels that another program has deleted, perhaps unseen by a scan.
        damaged: names of files of revisions that the disk has damaged or lost.
        spoiled: labels whose newest content the disk has lost before it was published: anything may be there.
    """

    current: dict[Key, Any] = field(default_factory=lambda: defaultdict(lambda: None))
    unseen: dict[Key, bytes] = field(default_factory=dict)
    required: set[tuple[str, str, bytes, str]] = field(default_factory=set)
    possible: set[tuple[str, str, bytes, str]] = field(default_factory=set)
    changes: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    notes: dict[Any, Any] = field(default_factory=lambda: defaultdict(lambda: None))
    marks: dict[str, Any] = field(default_factory=lambda: defaultdict(lambda: None))
    ours: set[Key] = field(default_factory=set)
    deleted: set[Key] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    spoiled: set[Key] = field(default_factory=set)

    def notice(self, key: Key) -> None:
        """Content that another program wrote under the key must be a revision from now on."""
        if key in self.unseen:
            self.required.add((*key, self.unseen.pop(key), "folder"))

    def forget(self, image: str, keys: Iterable[Key]) -> None:
        """Another image has the name from now on."""
        for key in keys:
            self.required = {each for each in self.required if each[:2] != key}
            self.possible = {each for each in self.possible if each[:2] != key}
            self.changes[key] += 1
            for known in (self.current, self.notes, self.unseen):
                known.pop(key, None)
            self.spoiled.discard(key)
            self.deleted.discard(key)
            self.ours.discard(key)
        self.notes.pop(image, None)
        self.marks.pop(image, None)
