"""An app to test with: whatever is brighter than a threshold is `bright`, and the threshold can be trained."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rayapp.app import LabelApp
from rayapp.errors import BadRequest, ModelBroken, NotFound
from rayapp.imaging.reader import read_segmentation, read_volume
from rayapp.inference.infer_task import Prediction, TaskInfo
from rayapp.training.train_task import Progress, TrainerInfo, TrainResult

NAMES = ("bright", "shiny")
"""`bright` ships with weights, `shiny` has none before it is trained."""
START = 60.0
MIB = 1 << 20


class Threshold:
    """`at` is the threshold."""

    def __init__(self, version):
        self.version, self.weights = version.version, version.weights
        self.info = TaskInfo(
            type="deepedit", labels={"background": 0, "bright": 1}, dimension=3, description="", version=self.version
        )
        self.at = None

    def load(self):
        if self.at is None:
            found = load_file(self.weights)
            if "at" not in found:
                raise ModelBroken("the weights hold no tensor `at`")
            self.at = float(found["at"])

    def prepare(self, volume):
        return volume

    def predict(self, prepared, prompts, config):
        return Prediction(labels=(prepared.array[0] > self.at).astype(np.uint8), params={"at": self.at})


class TrainingBackend:
    """Gradient steps on a soft threshold; the last pair is for validation."""

    info = TrainerInfo(
        description="finds the threshold",
        labels={"bright": 1},
        config={
            "max_epochs": 3,
            "iterations": 4,
            "learning_rate": 400.0,
            "pause": 0.0,
            "fault": "",
            "mode": ["a", "b"],
            "seed": 0,
        },
    )

    def train(self, request, host):
        params = request.params
        if params["fault"] == "refuse":
            raise BadRequest("this cannot be trained with")
        if params["fault"] == "break":
            raise ZeroDivisionError("/srv/patients/Doe^John")
        pairs = [(torch.tensor(_image(pair)).flatten(), torch.tensor(_label(pair)).flatten()) for pair in request.pairs]
        at = torch.nn.Parameter(torch.tensor([_start(request.parent)]))
        done, resumed = 0, host.resume()
        if resumed is not None:
            done = json.loads((resumed / "done.json").read_text())
            at.data = load_file(resumed / "at.safetensors")["at"]
        epochs, each = int(params["max_epochs"]), int(params["iterations"])
        best = None
        for iteration in range(done, epochs * each):
            if host.stopped():
                return None
            _trace(request.folder, f"{os.getpid()} {host.rank} {iteration}")
            time.sleep(float(params["pause"]))
            image, label = pairs[(iteration + host.rank) % len(pairs)]
            loss = torch.nn.functional.binary_cross_entropy_with_logits((image - at) / 10, label)
            loss.backward()
            if host.world_size > 1:
                torch.distributed.all_reduce(at.grad)
                at.grad /= host.world_size
            with torch.no_grad():
                at -= float(params["learning_rate"]) * at.grad
            at.grad = None
            best = _dice(pairs[-1], at.item())
            progress = Progress(
                epoch=iteration // each + 1,
                epochs=epochs,
                iteration=iteration + 1,
                iterations=epochs * each,
                loss=loss.item(),
                metric=best,
                best=best,
            )
            self._report(request, host, at, progress, each)
        if host.rank != 0:
            return None
        weights = request.folder / "model.safetensors"
        save_file({"at": at.detach()}, weights)
        baseline = None if request.baseline is None else _dice(pairs[-1], _start(request.baseline))
        return TrainResult(
            weights=weights,
            metric=best,
            baseline=baseline,
            card={"labels": {"bright": 1}, "metrics": {"dice": best}},
            stats={"best_metric": best},
        )

    def _report(self, request, host, at, progress, each):
        if progress.iteration % each:
            host.report(progress)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_file({"at": at.detach()}, Path(folder) / "at.safetensors")
            (Path(folder) / "done.json").write_text(str(progress.iteration))
            host.report(progress, checkpoint=Path(folder))
        if host.rank == 0:
            Image.new("RGB", (progress.epoch, 8)).save(request.folder / "curves.png")


def _image(pair):
    return read_volume(pair.image, max_bytes=MIB).array[0].astype(np.float32)


def _label(pair):
    return read_segmentation(pair.label, max_bytes=MIB).array.astype(np.float32)


def _start(version):
    return START if version is None else float(load_file(version.weights)["at"])


def _dice(pair, at):
    image, label = pair
    found = image > at
    return float(2 * (found * label).sum() / (found.sum() + label.sum()))


def _trace(folder, line):
    with (folder / "trace.txt").open("a") as file:
        file.write(line + "\n")


class App(LabelApp):
    """Two models of one kind."""

    name, description = "threshold", "for tests"

    @classmethod
    def install(cls, settings, models):
        if not models.versions("bright"):
            weights = settings.workspace / "at.safetensors"
            weights.parent.mkdir(parents=True, exist_ok=True)
            save_file({"at": torch.tensor([START])}, weights)
            models.publish("bright", weights, {"labels": {"bright": 1}})

    def init_infers(self):
        found = {name: self.models.production(name) for name in NAMES}
        return {name: Threshold(version) for name, version in found.items() if version}

    def init_trainers(self):
        return {name: TrainingBackend() for name in NAMES}

    def make_task(self, version):
        if version.name not in NAMES:
            raise NotFound(f"no model {version.name!r}")
        return Threshold(version)
