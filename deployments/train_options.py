"""The options that a request to train may set: a misspelt one is refused instead of being ignored."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from rayapp.errors import BadRequest
from rayapp.planner.overrides import FIELDS

MONAI_LABEL = frozenset(
    {
        *("client_id", "dataloader", "dataset", "device", "distributed_backend", "distributed_url", "force_multi_gpu"),
        *("gpus", "max_workers", "model", "multi_gpu", "name", "run_id", "tracking", "tracking_experiment_name"),
        *("tracking_run_name", "tracking_uri", "train_ds", "val_batch_size", "val_ds"),
    }
)
"""Further options of MONAI Label's clients and scripts; accepted without effect, since Ray places the work."""


def check_train_options(trainer: str, sent: Iterable[str], config: Collection[str]) -> None:
    """Check the names of a request's options.

    Args:
        trainer: The trainer's name.
        sent: Names of the options that the request sets.
        config: Names of the options that `/info/` lists for the trainer.

    Raises:
        BadRequest: Naming the options that the trainer does not have.
    """
    unknown = sorted({*sent} - {*config, *FIELDS, *MONAI_LABEL})
    if not unknown:
        return
    near = [match for name in unknown for match in difflib.get_close_matches(name, [*config, *FIELDS], n=1)]
    advice = f"did you mean {', '.join(map(repr, near))}?" if near else f"it has: {', '.join(config) or 'none'}"
    names = ", ".join(repr(name[:60]) for name in unknown[:10])
    raise BadRequest(f"trainer {trainer!r} has no option {names}; {advice}")
