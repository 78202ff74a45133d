"""An app's trainer, as rayapp's `TrainTask`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from rayapp.compat.engine_run import Run
from rayapp.compat.network_train import BasicTrainTask
from rayapp.compat.peer_tasks import TrainTask
from rayapp.compat.ported_datastore import TrainingData
from rayapp.compat.ported_infer import values_of
from rayapp.compat.unavailable import PORTING
from rayapp.compat.volume_reader import MAX_BYTES
from rayapp.errors import AppBroken, BadRequest
from rayapp.imaging.label_names import with_names
from rayapp.imaging.reader import read_segmentation
from rayapp.imaging.volume import Segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.protocol import parse_flag
from rayapp.training.train_task import Host, Pair, TrainerInfo, TrainRequest, TrainResult


class PortedTrainer:
    """A trainer of the app. A run that is interrupted starts again from its beginning.

    Args:
        task: The app's trainer.
        name: The model's name.
    """

    def __init__(self, task: TrainTask, name: str) -> None:
        if not isinstance(task, BasicTrainTask):
            raise AppBroken(f"a trainer that extends TrainTask alone cannot publish versions: {PORTING}")
        self._task, self._name = task, name

    @property
    def info(self) -> TrainerInfo:
        """The trainer's entry in `/info/`."""
        config = json.loads(json.dumps(self._task.config(), default=str))
        return TrainerInfo(
            description=self._task.description or f"Train {self._name}",
            labels=values_of(self._task._labels),
            config=config,
        )

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """Train; see `rayapp.training.train_task.TrainTask`.

        Raises:
            BadRequest: For several workers, or an option with a value that is not allowed.
        """
        if host.world_size > 1:
            raise BadRequest("this trainer runs in one worker: send workers=1")
        started = time.time()
        request.folder.mkdir(parents=True, exist_ok=True)
        options = typed(self._task.config(), request.params)
        params = {
            **request.params,
            **options,
            "model": self._name,
            "run_id": request.folder.name,
            "output_dir": str(request.folder),
            "device": str(host.device),
            "local_rank": 0,
            "multi_gpu": False,
        }
        run = Run(
            host,
            parent=request.parent.weights if request.parent else None,
            pretrained=parse_flag(request.params.get("pretrained", True), "pretrained"),
            baseline=request.baseline.weights if request.baseline else None,
        )
        self._task.run = run
        self._task(params, TrainingData(request.pairs, named_labels(request, self._task._labels)))
        if run.stopped:
            return None
        if run.weights is None:
            raise AppBroken("the trainer ended without weights")
        weights = request.folder / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in run.weights.items()}, weights)
        metrics = {} if run.metric is None else {"val_mean_dice": run.metric}
        stats = {"epoch": run.epochs, "best_metric": run.metric, "total_time": round(time.time() - started, 1)}
        return TrainResult(
            weights=weights,
            metric=run.metric,
            baseline=run.baseline_metric,
            card={"labels": values_of(self._task._labels), "metrics": metrics},
            stats=stats,
        )


def typed(config: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the trainer, with the request's value in the type of its default.

    Raises:
        BadRequest: Naming the option.
    """
    options: dict[str, Any] = {}
    for name, default in config.items():
        first = default[0] if isinstance(default, list) and default else default
        value = params.get(name, first)
        if isinstance(value, list) and value and not isinstance(first, list):
            value = value[0]
        if isinstance(first, bool):
            options[name] = parse_flag(value, name)
            continue
        try:
            options[name] = type(first)(value) if isinstance(first, (int, float)) and value != first else value
        except (TypeError, ValueError):
            raise BadRequest(f"option {name!r} must be like {first!r}, not {str(value)[:60]!r}") from None
    return options


def named_labels(request: TrainRequest, labels: Any) -> dict[Path, Path]:
    """Label files with the trainer's own values, by the file that each stands for.

    A saved label has names for its values. Where a structure has another value in the trainer's `labels`, a copy with
    that value is written to the run's folder.
    """
    wanted = values_of(labels)
    copies = {}
    for number, pair in enumerate(request.pairs):
        saved = _named(pair)
        moved = {value: wanted[name] for name, value in saved.names.items() if name in wanted}
        if all(value == new for value, new in moved.items()):
            continue
        table = np.zeros(int(saved.array.max(initial=0)) + 1, np.uint8)
        for value, new in moved.items():
            if value < len(table):
                table[value] = new
        copy = request.folder / "labels" / f"{number}.nii"
        copy.parent.mkdir(exist_ok=True)
        array = np.asfortranarray(table[saved.array.astype(np.intp)])
        copy.write_bytes(encode_segmentation(Segmentation(array=array, affine=saved.affine), ".nii"))
        copies[pair.label] = copy
    return copies


def _named(pair: Pair) -> Segmentation:
    return with_names(read_segmentation(pair.label, max_bytes=MAX_BYTES), pair.info)
