"""Supersession of clicks: of an annotator's calls on an image, only the newest is computed.

`place` belongs to one event loop; the check that it yields may be called in any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator

from rayapp.errors import Superseded

Check = Callable[[], None]


class Supersession:
    """The newest call of each annotator on each image."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, object] = {}

    @contextlib.contextmanager
    def place(self, whose: Hashable | None) -> Iterator[Check]:
        """Become the newest call of an annotator on an image.

        Args:
            whose: identifies annotator and image; None for callers without a client id, who supersede nobody.

        Yields:
            A check that raises Superseded once there is a newer call, or after the block was left while a thread still
            works for it, since its caller gave up.
        """
        mine = object()
        place = mine if whose is None else whose
        self._calls[place] = mine

        def check() -> None:
            if self._calls.get(place) is not mine:
                raise Superseded("a newer click on this image superseded this one, or its client disconnected")

        try:
            yield check
        finally:
            if self._calls.get(place) is mine:
                del self._calls[place]
