"""One image's session of nnInteractive, brought to whatever prompts a request has.

The session itself remembers prompts and answers, as its clients expect it to. Here it is a cache: each request has all
its prompts, and `ReplayedSession` adds to the session what is new, takes back what was undone last, or else starts
again and repeats all of them. The answer depends on the prompts alone, never on what the session was used for before,
so any replica gives it, also after another was killed.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from rayapp.inference.arrays import Bools, Labels, Shape
from rayapp.inference.methods.nninteractive_calls import Call

KEPT = 24
"""Answers kept with an image, so that undo, and turning to another structure and back, need no network."""


@contextlib.contextmanager
def _seeded(key: bytes) -> Iterator[None]:
    """Let what numpy draws be the same for the same prompts: the official planner of patches draws some at random."""
    state = np.random.get_state()
    np.random.seed(int.from_bytes(key[:4], "little"))
    try:
        yield
    finally:
        np.random.set_state(state)


class OfficialSession(Protocol):
    """The part of `nnInteractiveInferenceSession` that is used besides the methods that take prompts."""

    @property
    def num_interaction_channels(self) -> int:
        """Channels, with the one of the last answer, that hold prompts as half floats."""

    def set_image(self, image: Any) -> None:
        """Take an image, (1, K, J, I)."""

    def set_target_buffer(self, target_buffer: Any) -> None:
        """Take the array, (K, J, I), into which answers are written."""

    def reset_interactions(self) -> None:
        """Forget all prompts and answers of the image."""

    def undo(self) -> bool:
        """Take back the last prompt exactly; False if that cannot be done. It is once only, until the next prompt."""


class ReplayedSession:
    """A session with its image. Used by one thread at a time.

    Args:
        session: With the network, without an image. A call that fails, as when a click supersedes it, must leave it as
            it was before the call; the official class does so while undo is enabled.
        image: Intensities, (1, K, J, I); not modified.
    """

    def __init__(self, session: OfficialSession, image: Any) -> None:
        self._session = session
        self._answer: Labels = np.zeros(image.shape[1:], np.uint8)
        self._keys: list[bytes] = []
        self._kept: OrderedDict[bytes, Labels] = OrderedDict()
        session.set_image(image)
        session.set_target_buffer(self._answer)

    @property
    def shape(self) -> Shape:
        """Voxels of the image along i, j, k."""
        k, j, i = self._answer.shape
        return i, j, k

    @property
    def nbytes(self) -> int:
        """Bytes of the image as 32-bit floats, of the prompts' channels, and of the answers."""
        each = 4 + 2 * self._session.num_interaction_channels + 1
        return self._answer.size * each + self._answer.size * KEPT // 8

    def answer(self, calls: Sequence[Call]) -> Bools:
        """The answer to prompts, (K, J, I), whichever came before.

        Args:
            calls: All prompts in their order; at least one.
        """
        keys, key = [], b""
        for call in calls:
            key = call.digest(key)
            keys.append(key)
        if key in self._kept:
            self._kept.move_to_end(key)
            bits = np.unpackbits(self._kept[key], count=self._answer.size)
            return bits.reshape(self._answer.shape).astype(bool)
        self._rewind(keys)
        for call, key in list(zip(calls, keys, strict=True))[len(self._keys) :]:
            with _seeded(key):
                call.apply(self._session)
            self._keys.append(key)
            self._kept[key] = np.packbits(self._answer)
            self._kept.move_to_end(key)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._answer.astype(bool)

    def _rewind(self, keys: Sequence[bytes]) -> None:
        """Take back prompts until those in the session are the first of the wanted ones."""

        def first(count: int) -> bool:
            return self._keys[:count] == keys[:count]

        count = len(self._keys)
        if not first(count) and first(count - 1) and self._session.undo():
            self._keys.pop()
        if not first(len(self._keys)):
            self._session.reset_interactions()
            self._keys.clear()
