"""Stage: one mask of the answer to a turn, by which a client that reconnects says what it has."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_ID = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})\.([0-9a-f]{16})\.([0-9a-f]{16})")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One mask of an answer that comes in stages.

    Attributes:
        step: entry of the interaction's log that the answer is of.
        number: place among the masks of the answer, from 0.
        model: digest of the version of the model.
        mask: token of the mask; "" until it is sent.
    """

    step: int
    number: int
    model: str
    mask: str = ""

    @classmethod
    def of(cls, *, step: int, number: int, version: str) -> Stage:
        """The stage of an answer by a version of the model, not sent yet."""
        return cls(step=step, number=number, model=hashlib.sha256(version.encode()).hexdigest()[:16])

    @classmethod
    def of_id(cls, text: str) -> Stage | None:
        """The stage with this id; None for the id of anything else."""
        match = _ID.fullmatch(text)
        return match and cls(step=int(match[1]), number=int(match[2]), model=match[4], mask=match[3])

    @property
    def id(self) -> str:
        """The event's id in a stream. Only stages with a mask have one."""
        return f"{self.step}.{self.number}.{self.mask}.{self.model}"

    def covers(self, other: Stage) -> bool:
        """True if a client that has this stage needs `other` no more: an earlier or the same one of the same answer."""
        return (self.step, self.model) == (other.step, other.model) and self.number >= other.number
