"""One image's nnInteractive session, brought to the prompts of each request.

The official session remembers prompts and answers, since its clients rely on that. Here it is a cache: each request
contains all its prompts, and `ReplayedSession` adds the new ones, undoes the last ones, or else starts again and
repeats all. The answer depends on the prompts alone, never on earlier requests, so any replica can give it, even after
another was killed.
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
"""Number of answers cached per image, so that undo, or a return to an earlier structure, needs no network."""


@contextlib.contextmanager
def _seeded(key: bytes) -> Iterator[None]:
    """Make numpy's random numbers depend on the prompts alone, since the official planner of patches draws some."""
    state = np.random.get_state()
    np.random.seed(int.from_bytes(key[:4], "little"))
    try:
        yield
    finally:
        np.random.set_state(state)


class OfficialSession(Protocol):
    """The part of `nnInteractiveInferenceSession` that is used, apart from the methods that take prompts."""

    @property
    def num_interaction_channels(self) -> int:
        """Number of half-precision channels that hold prompts, including the one of the last answer."""

    def set_image(self, image: Any) -> None:
        """Set the image, (1, K, J, I)."""

    def set_target_buffer(self, target_buffer: Any) -> None:
        """Set the array, (K, J, I), into which answers are written."""

    def reset_interactions(self) -> None:
        """Drop all prompts and answers of the image."""

    def undo(self) -> bool:
        """Undo the last prompt exactly; False if that is not possible. Works once until the next prompt."""


class ReplayedSession:
    """A session with its image. For use by one thread at a time.

    Args:
        session: A session with the network and without an image. A call that fails, for example when a click supersedes
            it, must leave it in its state before the call; the official class does so while undo is enabled.
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
        """Memory of the image (32-bit floats), the prompts' channels and the answers, in bytes."""
        each = 4 + 2 * self._session.num_interaction_channels + 1
        return self._answer.size * each + self._answer.size * KEPT // 8

    def answer(self, calls: Sequence[Call]) -> Bools:
        """The answer to prompts, (K, J, I), regardless of earlier requests.

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
        """Undo prompts until those in the session are a prefix of the requested ones."""

        def first(count: int) -> bool:
            return self._keys[:count] == keys[:count]

        count = len(self._keys)
        if not first(count) and first(count - 1) and self._session.undo():
            self._keys.pop()
        if not first(len(self._keys)):
            self._session.reset_interactions()
            self._keys.clear()
