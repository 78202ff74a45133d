"""Turns of a simulated annotator and the network on a case: first prompts, an answer, a correction, another view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from rayapp.inference.zoom.glance import across
from rayapp.inference.zoom.marks import Marks, channels
from rayapp.inference.zoom.view import Floats, between
from rayapp.training.synthetic import prompts
from rayapp.training.synthetic.examples import Case, Look
from rayapp.training.synthetic.shapes import Random

ROUNDS = 6
"""Maximum number of turns on a case."""


@dataclass(frozen=True)
class Turn:
    """One input of the network from a case.

    Attributes:
        case: the case.
        look: the view.
        marks: the prompts so far.
        previous: the mask to start from in this view; None without one.
        sign: -1 if the image is inverted.
        number: number of previous answers.
    """

    case: Case
    look: Look
    marks: Marks
    previous: Floats | None
    sign: int
    number: int

    def inputs(self) -> Floats:
        """The network's input channels."""
        image = self.look.image.astype(np.float32) * self.sign
        return channels(self.look.view, image, self.marks, self.previous)

    def truth(self) -> Floats:
        """The share (edge, edge, edge) of each voxel that lies in the structure, 0 to 1."""
        return np.asarray(self.look.truth / np.float32(255), np.float32)


def opening(random: Random, case: Case) -> Turn:
    """The first turn on a case; sometimes it starts from an almost correct mask."""
    looks = [look for look in case.looks if look.prompted]
    look = looks[int(random.integers(len(looks)))]
    sign = -1 if random.random() < 0.4 else 1
    if random.random() > 0.06:
        return Turn(case, look, case.marks, None, sign, 0)
    truth = np.asarray(look.truth / np.float32(255), np.float32)
    worn = _worn(random, truth)
    marks = case.marks if random.random() < 0.3 else Marks(pitch=case.marks.pitch)
    if not marks.on_structure().size and not marks.around():
        marks = _with(marks, look, _correction(random, look, worn))
    return Turn(case, look, marks, worn, sign, 0)


def following(random: Random, turn: Turn, answer: Floats) -> Turn | None:
    """The turn after an answer: a correction of its error, or the answer in another view; None at the end.

    Args:
        random: source of randomness.
        turn: the turn that was answered.
        answer: the probability of the structure (edge, edge, edge) in the turn's view.
    """
    if turn.number + 1 >= ROUNDS or random.random() < 0.22:
        return None
    marks, look, previous = turn.marks, turn.look, answer
    if random.random() < 0.85:
        wrong = _correction(random, look, answer)
        if wrong is None:
            return None
        marks = _with(marks, look, wrong, line=random.random() < 0.12)
    others = [other for other in turn.case.looks if other is not look]
    if others and random.random() < 0.4:
        look = others[int(random.integers(len(others)))]
        previous = between(answer, turn.look.view, look.view)
        if not (look.truth > 127).any():
            return None
    elif random.random() < 0.15:  # the mask is forgotten, the prompts stay
        return Turn(turn.case, look, marks, None, turn.sign, turn.number + 1)
    return Turn(turn.case, look, marks, previous, turn.sign, turn.number + 1)


def _correction(random: Random, look: Look, answer: Floats) -> tuple[prompts.Voxels, bool] | None:
    """The next click in a view, see `prompts.correction`; in a column it is on the slice, at half the height."""
    truth, column = look.truth > 127, look.view.column
    if column is None:
        return prompts.correction(random, truth, answer > 0.5, np.ones(3))
    axis, at = column[0], look.view.edge // 2
    found = prompts.correction(random, truth.take([at], axis), answer.take([at], axis) > 0.5, np.ones(3))
    if found is None:
        return None
    place, included = found
    place[axis] = at
    return place, included


def _with(marks: Marks, look: Look, wrong: tuple[prompts.Voxels, bool] | None, *, line: bool = False) -> Marks:
    """The prompts with an additional click, or short stroke, at a voxel of a view."""
    more = marks.copy()
    if wrong is None:
        return more
    at, included = wrong
    place = look.view.to_millimetres(at.astype(float))
    if line:
        step = np.zeros(3)
        axes = across(look.view.column)
        step[axes[int(at.sum()) % len(axes)]] = look.view.spacing
        (more.strokes if included else more.erasers).append(place + np.arange(-2, 3)[:, None] * step)
    else:
        (more.include if included else more.exclude).append(place)
    return more


def _worn(random: Random, truth: Floats) -> Floats:
    """A mask as an earlier method may have left it: coarser, shifted, incomplete or too large."""
    width = random.uniform(0.5, 3)
    worn = ndimage.gaussian_filter(truth, width) + random.normal(0, 0.15)
    worn = np.roll(worn, random.integers(-2, 3, 3), (0, 1, 2))
    if random.random() < 0.4:
        at = random.integers(0, truth.shape[0], 3)
        size = int(random.integers(3, truth.shape[0] // 3))
        worn[tuple(slice(max(0, c - size), c + size) for c in at)] = random.choice([0.0, 0.9])
    return np.asarray(np.clip(worn, 0, 1), np.float32)
