"""Partial labels: voxels that nobody looked at, and structures that were not looked for.

Unannotated voxels and structures are excluded from the loss, instead of being learnt as background.
`rayapp.imaging.unseen` describes how unseen voxels are marked. `looked_for` in a label's info lists the structures that
the annotator looked for; background may contain any of the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rayapp.errors import BadRequest
from rayapp.imaging.unseen import UNSEEN

NEVER = -1e4
"""Logit of a class that is excluded at a voxel."""


def unsought(info: Mapping[str, Any], labels: Mapping[str, int], present: Collection[int]) -> tuple[int, ...]:
    """Values of the structures that the annotator of a label did not look for.

    Args:
        info: The label's info.
        labels: Value by structure name.
        present: Values in the label map; these were looked for, whatever the info says.

    Raises:
        BadRequest: If `looked_for` is not a list of names.
    """
    names = info.get("looked_for")
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRequest('the "looked_for" of its info must be a list of the structures\' names')
    sought = {name.casefold() for name in names}
    return tuple(
        value for name, value in labels.items() if value and value not in present and name.casefold() not in sought
    )


def taught(logits: Tensor, labels: Tensor, open_: Sequence[Collection[int]]) -> tuple[Tensor, Tensor]:
    """Logits and labels for a loss, in which unannotated voxels and structures have no effect.

    Unseen voxels become certain and correct background. A structure that was not looked for is merged with background
    by adding their probabilities.

    Args:
        logits: (N, 1 + L, …).
        labels: (N, …), with `UNSEEN` where nobody looked.
        open_: For each image, the values of the structures that were not looked for.
    """
    if any(open_):
        logits = torch.stack([_folded(one, sorted(values)) for one, values in zip(logits, open_, strict=True)])
    unseen = labels == UNSEEN
    if unseen.any():
        certain = torch.full_like(logits, NEVER)
        certain[:, 0] = 0
        logits = torch.where(unseen[:, None], certain, logits)
        labels = torch.where(unseen, torch.zeros_like(labels), labels)
    return logits, labels


def _folded(logits: Tensor, values: Sequence[int]) -> Tensor:
    """Logits (1 + L, …) with the classes of some values merged into background."""
    if not values:
        return logits
    classes = list(logits)
    classes[0] = torch.logsumexp(torch.stack([classes[value] for value in (0, *values)]), 0)
    for value in values:
        classes[value] = torch.full_like(classes[value], NEVER)
    return torch.stack(classes)
