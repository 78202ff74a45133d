"""The error for prompts under a name that a model does not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from rayapp.errors import BadRequest

LIKENESS = 0.8
"""Least similarity (`difflib`) at which a label counts as the one that was meant."""


def label_meant(name: str, labels: Iterable[str]) -> str | None:
    """The label that a name was probably meant to be, whatever its case; None if it resembles none."""
    folded = {label.casefold(): label for label in labels}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=LIKENESS)
    return folded[near[0]] if near else None


def unknown_label(name: str, labels: Iterable[str]) -> BadRequest:
    """The error that lists a model's labels, and names the one that was probably meant."""
    labels = list(labels)
    meant = label_meant(name, labels)
    advice = f": did you mean {meant!r}?" if meant else ""
    return BadRequest(f"the model has no label {name[:60]!r}; its labels are {', '.join(labels)}{advice}")
