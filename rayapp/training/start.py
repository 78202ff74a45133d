"""Start of a run: whether it fine-tunes the version in production or trains a new design from scratch, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rayapp.models.networks import build
from rayapp.models.store import ModelVersion
from rayapp.training.design import GRID, Design, range_of
from rayapp.training.options import Options
from rayapp.training.recipe import Recipe
from rayapp.training.train_task import Pair, TrainRequest

GROWTH = 2
"""Factor by which the labelled images must have multiplied before a version's design is questioned."""
FINER = 0.8
"""Volume of a new design's voxels, relative to the old, below which they count as finer, and the reverse as coarser."""
LARGER = 1.5
"""Factor by which a new design's window in mm, or its network's parameters, must exceed the old to count as larger."""
CONTINUED = 0.25
"""Peak of the learning rate of a run that fine-tunes, relative to one from scratch."""


def chosen_design(
    task: Recipe[Any], request: TrainRequest, options: Options, pairs: Sequence[Pair], device: torch.device
) -> Design:
    """The parent's design if its version should be fine-tuned on these images, else the one that suits them best.

    The plan's `start` names the choice and the reason, `from` the version that is fine-tuned, `images` the number of
    images that the design was made for, and `device` their kind of device.

    Args:
        task: The recipe.
        request: The run.
        options: The run's options.
        pairs: The labelled images.
        device: The device to train on.

    Raises:
        BadRequest: If images cannot be read, or the request describes no possible network.
    """
    parent = request.parent
    design = task.design(pairs, request.params, device=device)
    origin = {"images": len(pairs), "device": device.type}
    start = "from scratch, " + ("as there is no version to fine-tune" if parent is None else "as requested")
    if parent is not None and options.pretrained:
        fixed = [name for name in GRID if name in task.overrides(request.params)]
        objection = design.objection(parent.card, fixed=fixed) if task.can_fine_tune(parent) else "it has other labels"
        objection = objection or outgrown(parent, design, origin, request.tried)
        if objection is None:
            grid = {name: parent.card[name] for name in GRID}
            inherited = task.design(pairs, {**request.params, **grid}, device=device)
            if inherited.network == parent.card["network"]:
                made = {"images": parent.designed_for, "device": parent.card.get("plan", {}).get("device", device.type)}
                made |= {"from": parent.version, "start": f"fine-tunes {parent.version}"}
                intensities = range_of(parent.card.get("intensities"))
                return replace(inherited, plan={**inherited.plan, **made}, intensities=intensities)
            objection = "the trainer designs another network"
        start = f"from scratch and not from {parent.version}: {objection}"
    return replace(design, plan={**design.plan, **origin, "start": start})


def fine_tuned(options: Options, defaults: Options) -> Options:
    """The options of a run that fine-tunes: with a lower learning rate, unless the request sets another than usual."""
    if options.learning_rate != defaults.learning_rate:
        return options
    return replace(options, learning_rate=CONTINUED * options.learning_rate)


def outgrown(parent: ModelVersion, design: Design, origin: Mapping[str, Any], tried: int) -> str | None:
    """The reason why a version's design should give way to a new one; None if it should not.

    A design is questioned once the labelled images have doubled since it was made, or on another kind of device, and
    gives way to one that sees more, at voxels no coarser: finer ones, a larger window, or a larger network.

    Args:
        parent: The version.
        design: The new design.
        origin: `images` and `device` that the new design was made for.
        tried: Most images for which a version of the model was designed, promoted or not: each size is tried once.
    """
    card = parent.card
    known = max(parent.designed_for, tried)
    device = card.get("plan", {}).get("device", origin["device"])
    if known and origin["images"] >= GROWTH * known:
        why = f"{origin['images']} images are labelled instead of {parent.designed_for}"
    elif device != origin["device"] and origin["images"] > tried:
        why = f"it was designed for training on {device}"
    else:
        return None
    old, new = (
        np.broadcast_to(np.array(mm, dtype=float), len(design.roi_size)) for mm in (card["spacing"], design.spacing)
    )
    if FINER * new.prod() > old.prod():
        return None
    if new.prod() < FINER * old.prod():
        return f"{why}, and finer voxels are possible"
    if (new * design.roi_size).prod() > LARGER * (old * card["roi_size"]).prod():
        return f"{why}, and a larger window is possible"
    if parameters(design.network) > LARGER * parameters(card["network"]):
        return f"{why}, and a larger network is possible"
    return None


def parameters(network: Mapping[str, Any]) -> int:
    """Number of parameters of a network that a card describes.

    Raises:
        ModelBroken: If there is no such network.
    """
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(network).parameters())
