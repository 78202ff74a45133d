"""The order in which calls become their annotator's newest on an image."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator

import pytest

from rayapp.serving.supersession import Check, Supersession


def record_places(monkeypatch: pytest.MonkeyPatch) -> list[Hashable | None]:
    """From now on, who took a place in a `Supersession` of this process, in that order."""
    taken: list[Hashable | None] = []
    place = Supersession.place

    @contextlib.contextmanager
    def recorded(self: Supersession, whose: Hashable | None) -> Iterator[Check]:
        with place(self, whose) as check:
            taken.append(whose)
            yield check

    monkeypatch.setattr(Supersession, "place", recorded)
    return taken
