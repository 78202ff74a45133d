"""BundleTrainTask: a MONAI bundle trained by its own `train.json`, on the images that were labelled here.

The bundle's networks, transforms, losses, engines and metrics are used as they are. Only where the data comes from and
goes to is ours: pairs take the place of its datasets' `data`, its handlers that write files are left out, and handlers
of ours speak with the host. One worker trains; the bundle's evaluator says how well it does.

Labels are saved here with the values that the bundle's masks have, 1, 2, 3, ... The BraTS challenges called the third
of them, the enhancing tumour, 4 until 2022: a step that reads such labels is shown 4 where ours say 3.
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
from rayapp.training.train_task import Host, Pair, Progress, TrainerInfo, TrainRequest, TrainResult

WRITERS = ("CheckpointSaver", "CheckpointLoader", "TensorBoardStatsHandler", "TensorBoardImageHandler", "StatsHandler")
"""Handlers that write or read files of the bundle's own choice, or only talk."""
STATE, AT = "state.pt", "at.json"
BRATS = "ConvertToMultiChannelBasedOnBratsClassesd"
ENHANCING = 3
"""The value of the enhancing tumour in labels that are saved here: it is the third channel of what that step makes."""
REFERENCES = 8
"""How often a config may send its reader elsewhere for one value."""


class BundleTrainTask:
    """Trains one bundle. Raises ModelBroken if it has no readable train config or is not made as the zoo's are."""

    def __init__(self, folder: BundleFolder) -> None:
        self._folder = folder
        served = BundleTask(folder)
        config = folder.read(TRAIN)
        try:
            self._epochs, epochs = _epochs(config)
            config["validate"]["evaluator"]["_target_"]
        except (KeyError, TypeError, ValueError):
            text = "configs/train.json has no train#trainer with max_epochs, or no validate#evaluator"
            raise folder.broken(text) from None
        self.info = TrainerInfo(
            description=f"By the bundle's own train config: {served.info.description}",
            labels=served.labels,
            config={"max_epochs": epochs, "val_split": 0.2},
        )

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """As the protocol says."""
        if host.world_size > 1:
            raise BadRequest("a bundle is trained by one worker: set workers to 1")
        if len(request.pairs) < 2:
            raise BadRequest("a bundle is trained with at least two labelled images: one is for validation")
        request.folder.mkdir(parents=True, exist_ok=True)
        params = {**self.info.config, **request.params}
        try:
            epochs, share = int(params["max_epochs"]), float(params["val_split"])
        except (TypeError, ValueError) as error:
            raise BadRequest("max_epochs is a whole number, val_split a share") from error
        if epochs < 1:
            raise BadRequest(f"max_epochs must be at least 1, not {epochs}")
        train, val = split(request.pairs, share)
        over = {**_settings(request.folder, host.device, train, val), self._epochs: epochs}
        with self._folder.parser(TRAIN, over) as parser:
            _without_writers(parser.config)
            _as_brats(parser.config)
            if "initialize" in parser:
                parser.get_parsed_content("initialize")
            trainer = parser.get_parsed_content("train#trainer")
            evaluator = parser.get_parsed_content("validate#evaluator")
        run = _Run(self._folder, request, host, trainer=trainer, evaluator=evaluator)
        return run.go(epochs, self.info)


def _epochs(config: Mapping[str, Any]) -> tuple[str, int]:
    """Where a config says how many epochs are trained, and how many: other parts of it may look there too.

    Raises KeyError, TypeError or ValueError if it does not.
    """
    at = "train#trainer#max_epochs"
    for _ in range(REFERENCES):
        value: Any = config
        for key in at.split("#"):
            value = value[key]
        if not (isinstance(value, str) and value.startswith("@")):
            return at, int(value)
        at = value.removeprefix("@").replace("::", "#")
    raise ValueError(at)


def _settings(folder: Path, device: torch.device, train: list[Pair], val: list[Pair]) -> dict[str, Any]:
    """What takes the place of the config's own values."""
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


def _without_writers(config: Any) -> None:
    for part in ("train", "validate"):
        handlers = config.get(part, {}).get("handlers")
        if isinstance(handlers, list):
            for handler in handlers:
                if isinstance(handler, dict) and str(handler.get("_target_", "")).rsplit(".", 1)[-1] in WRITERS:
                    handler["_disabled_"] = True


def _as_brats(config: Any) -> None:
    """Show steps that read labels as BraTS writes them what they look for: see this module's docstring."""
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        _as_brats(part)
    if isinstance(config, dict) and str(config.get("_target_", "")).rsplit(".", 1)[-1] == BRATS:
        step, enhancing = dict(config), config.get("et_label", 4)
        renamed = {"orig_labels": [ENHANCING], "target_labels": [enhancing]}
        config.clear()
        config |= {
            "_target_": "Compose",
            "transforms": [{"_target_": "MapLabelValued", "keys": step["keys"], **renamed}, step],
        }


@dataclass
class _Best:
    metric: float = -math.inf
    epoch: int = 0
    weights: Mapping[str, Tensor] | None = None


class _Run:
    """One run: the bundle's engines, with handlers that speak with the host."""

    def __init__(
        self, folder: BundleFolder, request: TrainRequest, host: Host, *, trainer: Any, evaluator: Any
    ) -> None:
        self._folder, self._request, self._host = folder, request, host
        self._trainer, self._evaluator = trainer, evaluator
        self._best = _Best()
        self._began = time.time()
        self._stopped = False

    def go(self, epochs: int, info: TrainerInfo) -> TrainResult | None:
        """Measure what serves, train, and give what did best."""
        from ignite.engine import Events

        baseline = None
        if self._request.baseline is not None:
            self._load(self._request.baseline.weights)
            baseline = self._measured()
        begun = self._resumed()
        self._best = self._best if begun else _Best()
        if not begun and self._request.params.get("pretrained", True):
            self._load(self._request.parent.weights if self._request.parent else self._folder.weights())
        self._trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: self._heed())
        self._trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self._tell(epochs))
        self._trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._keep(epochs))
        self._evaluator.add_event_handler(Events.COMPLETED, lambda _: self._judge())
        if not begun or self._trainer.state.epoch < epochs:
            self._trainer.run()
        if self._stopped:
            return None
        if self._best.weights is None:
            self._evaluator.run()  # the bundle validates more rarely than this run was long
        return self._result(epochs, info, baseline)

    def _load(self, weights: Path) -> None:
        try:
            self._trainer.network.load_state_dict(self._folder.tensors(weights))
        except RuntimeError as error:
            raise self._folder.broken(f"{weights.name} does not fit the network of its train config") from error

    def _measured(self) -> float | None:
        self._evaluator.run()
        return self._figure()

    def _figure(self) -> float | None:
        name = self._evaluator.state.key_metric_name
        value = self._evaluator.state.metrics.get(name) if name else None
        return None if value is None else float(value)

    def _heed(self) -> None:
        if self._host.stopped():
            self._stopped = True
            self._trainer.terminate()

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

    def _tell(self, epochs: int) -> None:
        if not self._stopped:
            self._host.report(self._progress(epochs))

    def _judge(self) -> None:
        figure = self._figure()
        if figure is not None and figure > self._best.metric:
            state = self._trainer.network.state_dict()
            weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
            self._best = _Best(figure, self._trainer.state.epoch, weights)

    def _keep(self, epochs: int) -> None:
        """Hand over a checkpoint after each epoch."""
        if self._stopped:
            return
        with tempfile.TemporaryDirectory(dir=self._request.folder) as folder:
            state = {
                "network": self._trainer.network.state_dict(),
                "optimizer": self._trainer.optimizer.state_dict(),
                "best": dict(self._best.weights or {}),
            }
            torch.save(state, Path(folder) / STATE)
            at = {"epoch": self._trainer.state.epoch, "metric": self._best.metric, "best": self._best.epoch}
            (Path(folder) / AT).write_text(json.dumps(at))
            self._host.report(self._progress(epochs), checkpoint=Path(folder))

    def _resumed(self) -> bool:
        """Go on from the host's checkpoint, if it has one."""
        kept = self._host.resume()
        if kept is None:
            return False
        state = torch.load(kept / STATE, map_location=self._host.device, weights_only=True)
        at = json.loads((kept / AT).read_text())
        self._trainer.network.load_state_dict(state["network"])
        self._trainer.optimizer.load_state_dict(state["optimizer"])
        self._best = _Best(at["metric"], at["best"], state["best"] or None)
        length = len(self._trainer.data_loader)
        self._trainer.state.epoch_length = length
        self._trainer.state.epoch = at["epoch"]
        self._trainer.state.iteration = at["epoch"] * length
        return True

    def _result(self, epochs: int, info: TrainerInfo, baseline: float | None) -> TrainResult:
        best = self._best
        if best.weights is not None:
            self._trainer.network.load_state_dict(best.weights)
        weights = self._request.folder / "model.safetensors"
        save_weights(self._trainer.network, weights)
        metric = None if best.weights is None else best.metric
        name = str(self._evaluator.state.key_metric_name)
        side = {"key_metric_name": name, "best_metric": metric, "best_metric_epoch": best.epoch}
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
                "eval": side,
            },
        )
