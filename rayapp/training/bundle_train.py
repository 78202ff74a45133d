"""BundleTrainTask: trains a MONAI bundle by its own `train.json`, on the images labelled here.

The bundle's networks, transforms, losses, engines and metrics are used unchanged. Only data and outputs differ: the
pairs replace the `data` of its datasets, its handlers that write files are disabled, and handlers added here report to
the host. One worker trains; the bundle's evaluator measures the result.

Labels are saved here with the values of the bundle's masks: 1, 2, 3, and so on. The BraTS challenges gave the third
class, the enhancing tumour, the value 4 until 2022. For a transform that expects such labels, 3 is mapped to 4.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayapp.errors import BadRequest
from rayapp.inference.methods.monai_bundle import BundleTask
from rayapp.models.bundle_folder import TRAIN, BundleFolder
from rayapp.models.networks import save_weights
from rayapp.training.cases import split
from rayapp.training.options import Options
from rayapp.training.train_task import Host, Pair, Progress, TrainerInfo, TrainRequest, TrainResult

WRITERS = ("CheckpointSaver", "CheckpointLoader", "TensorBoardStatsHandler", "TensorBoardImageHandler", "StatsHandler")
"""Handlers that read or write files at places that the bundle chooses, or that only log."""
OPTIONS = ("max_epochs", "val_split", "pretrained")
"""The options of `rayapp.training.options` that a bundle's training has; its config decides about all else."""
STATE, PROGRESS = "state.pt", "at.json"
BRATS = "ConvertToMultiChannelBasedOnBratsClassesd"
ENHANCING_TUMOUR = 3
"""Value of the enhancing tumour in labels saved here: the third output channel of that transform."""
MAX_REFERENCES = 8
"""Largest number of references (`@key`) followed to find one value in a config."""


class BundleTrainTask:
    """The trainer of one MONAI bundle."""

    def __init__(self, folder: BundleFolder) -> None:
        """Read the bundle's train config.

        Args:
            folder: The bundle.

        Raises:
            ModelBroken: If there is no readable train config, or it is not structured as those of MONAI's model zoo.
        """
        self._folder = folder
        served = BundleTask(folder)
        config = folder.read(TRAIN)
        try:
            self._epochs_key, epochs = _epochs(config)
            config["validate"]["evaluator"]["_target_"]
        except (KeyError, TypeError, ValueError):
            text = "configs/train.json has no train#trainer with max_epochs, or no validate#evaluator"
            raise folder.broken(text) from None
        self._options = Options(max_epochs=epochs)
        self.info = TrainerInfo(
            description=f"By the bundle's own train config: {served.info.description}",
            labels=served.labels,
            config={name: getattr(self._options, name) for name in OPTIONS if name != "pretrained"},
        )

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """See `TrainTask.train`."""
        if host.world_size > 1:
            raise BadRequest("a bundle is trained by one worker: set workers to 1")
        if len(request.pairs) < 2:
            raise BadRequest(
                f"a bundle needs at least two labelled images, one of them for validation, but there are "
                f"{len(request.pairs)}: label more images"
            )
        request.folder.mkdir(parents=True, exist_ok=True)
        options = self._options.over({name: request.params.get(name) for name in OPTIONS})
        if options.max_epochs < 1:
            raise BadRequest(f"max_epochs must be at least 1, not {options.max_epochs}: a bundle trains in epochs")
        train, val = split(request.pairs, options.val_split)
        overrides = {**_overrides(request.folder, host.device, train, val), self._epochs_key: options.max_epochs}
        with self._folder.parser(TRAIN, overrides) as parser:
            _disable_writers(parser.config)
            _map_labels_for_brats(parser.config)
            if "initialize" in parser:
                parser.get_parsed_content("initialize")
            trainer = parser.get_parsed_content("train#trainer")
            evaluator = parser.get_parsed_content("validate#evaluator")
        run = _BundleRun(self._folder, request, host, options, trainer=trainer, evaluator=evaluator)
        return run.train(self.info)


def _epochs(config: Mapping[str, Any]) -> tuple[str, int]:
    """The key under which a config sets the number of epochs, and that number; other parts may refer to the same key.

    Raises:
        KeyError, TypeError, ValueError: If the config does not set it.
    """
    key = "train#trainer#max_epochs"
    for _ in range(MAX_REFERENCES):
        value: Any = config
        for part in key.split("#"):
            value = value[part]
        if not (isinstance(value, str) and value.startswith("@")):
            return key, int(value)
        key = value.removeprefix("@").replace("::", "#")
    raise ValueError(key)


def _overrides(folder: Path, device: torch.device, train: list[Pair], val: list[Pair]) -> dict[str, Any]:
    """The values that replace the config's own, by key."""
    return {
        "device": device,
        "ckpt_dir": str(folder),
        "output_dir": str(folder),
        "train#trainer#amp": device.type == "cuda",
        "validate#evaluator#amp": device.type == "cuda",
        **{
            f"{part}#{key}": value
            for part, pairs in (("train", train), ("validate", val))
            for key, value in {
                "dataset#data": [{"image": str(pair.image), "label": str(pair.label)} for pair in pairs],
                "dataloader#num_workers": 0,
            }.items()
        },
    }


def _disable_writers(config: Any) -> None:
    for part in ("train", "validate"):
        handlers = config.get(part, {}).get("handlers")
        if isinstance(handlers, list):
            for handler in handlers:
                if isinstance(handler, dict) and str(handler.get("_target_", "")).rsplit(".", 1)[-1] in WRITERS:
                    handler["_disabled_"] = True


def _map_labels_for_brats(config: Any) -> None:
    """Map the enhancing tumour's value before each BraTS transform: see this module's docstring."""
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        _map_labels_for_brats(part)
    if isinstance(config, dict) and str(config.get("_target_", "")).rsplit(".", 1)[-1] == BRATS:
        transform, value = dict(config), config.get("et_label", 4)
        mapping = {"orig_labels": [ENHANCING_TUMOUR], "target_labels": [value]}
        config.clear()
        config |= {
            "_target_": "Compose",
            "transforms": [{"_target_": "MapLabelValued", "keys": transform["keys"], **mapping}, transform],
        }


@dataclass
class _Best:
    metric: float = -math.inf
    epoch: int = 0
    weights: Mapping[str, Tensor] | None = None


class _BundleRun:
    """One run: the bundle's engines, with handlers that report to the host."""

    def __init__(
        self, folder: BundleFolder, request: TrainRequest, host: Host, options: Options, *, trainer: Any, evaluator: Any
    ) -> None:
        self._folder, self._request, self._host, self._options = folder, request, host, options
        self._trainer, self._evaluator = trainer, evaluator
        self._best = _Best()
        self._began = time.time()
        self._stopped = False

    def train(self, info: TrainerInfo) -> TrainResult | None:
        """Evaluate the baseline, train, and return the best weights; None when stopped."""
        from ignite.engine import Events

        epochs, baseline = self._options.max_epochs, None
        self._evaluator.add_event_handler(Events.ITERATION_STARTED, lambda _: self._check_stopped())
        if self._request.baseline is not None:
            self._load(self._request.baseline.weights)
            baseline = self._evaluate()
            if self._stopped:
                return None
        resumed = self._resume()
        self._best = self._best if resumed else _Best()
        if not resumed and self._options.pretrained:
            self._load(self._request.parent.weights if self._request.parent else self._folder.weights())
        self._trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: self._check_stopped())
        self._trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self._report(epochs))
        self._trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._save_checkpoint(epochs))
        self._evaluator.add_event_handler(Events.COMPLETED, lambda _: self._keep_if_best())
        if not resumed or self._trainer.state.epoch < epochs:
            self._trainer.run()
        if not self._stopped and self._best.weights is None:
            self._evaluator.run()  # the bundle's validation interval is longer than this run
        if self._stopped:
            return None
        return self._result(epochs, info, baseline)

    def _load(self, weights: Path) -> None:
        try:
            self._trainer.network.load_state_dict(self._folder.tensors(weights))
        except RuntimeError as error:
            raise self._folder.broken(f"{weights.name} does not fit the network of its train config") from error

    def _evaluate(self) -> float | None:
        self._evaluator.run()
        return self._key_metric()

    def _key_metric(self) -> float | None:
        name = self._evaluator.state.key_metric_name
        value = self._evaluator.state.metrics.get(name) if name else None
        return None if value is None else float(value)

    def _check_stopped(self) -> None:
        if self._host.stopped():
            self._stopped = True
            self._trainer.terminate()
            self._evaluator.terminate()

    def _progress(self, epochs: int) -> Progress:
        state = self._trainer.state
        length = int(state.epoch_length or 1)
        output = state.output[0] if isinstance(state.output, list) else state.output
        best = None if self._best.weights is None else self._best.metric
        return Progress(
            epoch=max(1, state.epoch),
            epochs=epochs,
            iteration=max(1, state.iteration),
            iterations=epochs * length,
            loss=float(output["loss"]) if isinstance(output, dict) and "loss" in output else math.nan,
            metric=best,
            best=best,
        )

    def _report(self, epochs: int) -> None:
        if not self._stopped:
            self._host.report(self._progress(epochs))

    def _keep_if_best(self) -> None:
        if self._stopped:
            return  # the metric is of the images until then
        metric = self._key_metric()
        if metric is not None and metric > self._best.metric:
            state = self._trainer.network.state_dict()
            weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
            self._best = _Best(metric, self._trainer.state.epoch, weights)

    def _save_checkpoint(self, epochs: int) -> None:
        """Report progress with a checkpoint after each epoch."""
        if self._stopped:
            return
        with tempfile.TemporaryDirectory(dir=self._request.folder) as folder:
            state = {
                "network": self._trainer.network.state_dict(),
                "optimizer": self._trainer.optimizer.state_dict(),
                "best": dict(self._best.weights or {}),
            }
            torch.save(state, Path(folder) / STATE)
            progress = {"epoch": self._trainer.state.epoch, "metric": self._best.metric, "best": self._best.epoch}
            (Path(folder) / PROGRESS).write_text(json.dumps(progress))
            self._host.report(self._progress(epochs), checkpoint=Path(folder))

    def _resume(self) -> bool:
        """Resume from the host's newest checkpoint; False if there is none."""
        checkpoint = self._host.resume()
        if checkpoint is None:
            return False
        state = torch.load(checkpoint / STATE, map_location=self._host.device, weights_only=True)
        progress = json.loads((checkpoint / PROGRESS).read_text())
        self._trainer.network.load_state_dict(state["network"])
        self._trainer.optimizer.load_state_dict(state["optimizer"])
        self._best = _Best(progress["metric"], progress["best"], state["best"] or None)
        length = len(self._trainer.data_loader)
        self._trainer.state.epoch_length = length
        self._trainer.state.epoch = progress["epoch"]
        self._trainer.state.iteration = progress["epoch"] * length
        return True

    def _result(self, epochs: int, info: TrainerInfo, baseline: float | None) -> TrainResult:
        best = self._best
        if best.weights is not None:
            self._trainer.network.load_state_dict(best.weights)
        weights = self._request.folder / "model.safetensors"
        save_weights(self._trainer.network, weights)
        metric = None if best.weights is None else best.metric
        name = str(self._evaluator.state.key_metric_name)
        validation = {"key_metric_name": name, "best_metric": metric, "best_metric_epoch": best.epoch}
        return TrainResult(
            weights=weights,
            metric=metric,
            baseline=baseline,
            card={"description": info.description, "labels": dict(info.labels), "metrics": {name: metric}},
            stats={
                "total_epochs": epochs,
                "epoch": self._trainer.state.epoch,
                "total_iterations": self._trainer.state.iteration,
                "start_ts": int(self._began),
                "total_time": f"{time.time() - self._began:.0f} s",
                "best_metric": metric,
                "eval": validation,
            },
        )
