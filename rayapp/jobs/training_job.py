"""Training: what a training job does around the run itself: its data, its folders, and what becomes of the result.

The run's folder, `<workspace>/runs/<job>/`, keeps curves and pictures for as long as the job is remembered; checkpoints
lie in `<workspace>/checkpoints/<job>/` until it ends. `request.json` in the run's folder fixes images, labels and the
version to start from at the beginning, so that a run that goes on after a fault goes on with the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rayapp import __version__
from rayapp.config import Settings
from rayapp.datastore.interfaces import Datastore
from rayapp.datastore.job_record import Job, State
from rayapp.errors import BadRequest
from rayapp.files.durable import replacing
from rayapp.jobs.queue import JobContext, Outcome
from rayapp.models.store import ModelStore, ModelVersion, sha256_of
from rayapp.protocol import checked_name, parse_flag
from rayapp.training.train_task import Pair, TrainRequest, TrainResult

logger = logging.getLogger(__name__)

OPTIONS: Mapping[str, Any] = {"pretrained": True, "guard": True, "workers": 0}
"""Options of every training, beside its trainer's own: start from the version that serves; keep a worse result from
serving; how many workers at most (0: one for each GPU, or one without)."""
REQUEST = "request.json"


class Publisher(Protocol):
    """What a training needs of the models' owner."""

    def publish(
        self, name: str, weights: Path, card: Mapping[str, Any], *, request: str, promote: bool = True
    ) -> ModelVersion:
        """See `rayapp.serving.catalogue.Catalogue.publish`."""


class TrainingBackend(Protocol):
    """Runs a trainer's `train` somewhere, from the newest checkpoint in `checkpoints` if there is one."""

    def __call__(self, job: Job, request: TrainRequest, checkpoints: Path, desk: JobContext) -> TrainResult | None:
        """The result; None once the desk said stop."""


class Training:
    """Runs the jobs of kind `train`."""

    def __init__(self, *, settings: Settings, datastore: Datastore, models: Publisher, fit: TrainingBackend) -> None:
        self._settings = settings
        self._store = ModelStore.of(settings)
        self._datastore = datastore
        self._models = models
        self._fit = fit

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """Raises BadRequest if there is nothing to train on, or an option is of no use."""
        checked_name(name, "model")
        _workers(request)
        for name in ("pretrained", "guard"):
            _option(request, name)
        if not self._datastore.status()["completed"]:
            raise BadRequest("no image has a final label yet: save one, then train")

    def run(self, job: Job, desk: JobContext) -> Outcome | None:
        """See `rayapp.jobs.queue.Runner`."""
        request = self._request(job)
        made = self._store.published(job.name, job.id)
        if made is not None:  # before a crash that came before the record
            weights, card = made.weights, made.card
        else:
            result = self._fit(job, request, self._checkpoints(job), desk)
            if result is None:
                return None
            weights, card = result.weights, self._card(job, request, result)
        verdict = card["verdict"]
        version = self._models.publish(job.name, weights, card, request=job.id, promote=verdict["promoted"])
        return Outcome(
            text=f"made version {version.version}, {verdict['why']}",
            stats=verdict["stats"],
            result={"version": version.version, **{key: verdict[key] for key in ("promoted", "metric", "baseline")}},
        )

    def _card(self, job: Job, request: TrainRequest, result: TrainResult) -> dict[str, Any]:
        """What the version says of itself, the verdict on it included."""
        promoted, why = self._verdict(job, request, result)
        return {
            "parent": request.parent.version if request.parent else None,
            "job": job.id,
            "code": f"rayapp {__version__}",
            "params": dict(request.params),
            "data": json.loads((request.folder / REQUEST).read_text())["data"],
            **result.card,
            "verdict": {
                "promoted": promoted,
                "why": why,
                "metric": result.metric,
                "baseline": result.baseline,
                "stats": dict(result.stats),
            },
        }

    def clean(self, job: Job) -> None:
        """Drop the checkpoints and weights, which live on as a version; of a stopped job everything."""
        shutil.rmtree(self._checkpoints(job), ignore_errors=True)
        folder = run_folder(self._settings, job.id)
        if job.state is State.STOPPED:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for spent in (*folder.rglob("*.safetensors"), *folder.glob(".*")):
            spent.unlink(missing_ok=True)

    def _checkpoints(self, job: Job) -> Path:
        return self._settings.workspace / "checkpoints" / job.id

    def _request(self, job: Job) -> TrainRequest:
        folder = run_folder(self._settings, job.id)
        file = folder / REQUEST
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            pairs = self._datastore.datalist(immutable=True)
            if not pairs:
                raise BadRequest("no image has a final label any more: save one, then train")
            fixed = {"pairs": pairs, "data": _digest(pairs), "production": self._store.serving(job.name)}
            with replacing(file) as staged:
                staged.write_text(json.dumps(fixed))
        fixed = json.loads(file.read_text())
        serving = fixed["production"]
        production = None if serving is None else self._store.version(job.name, serving)
        return TrainRequest(
            model=job.name,
            pairs=[Pair(image=Path(pair["image"]), label=Path(pair["label"])) for pair in fixed["pairs"]],
            folder=folder,
            params={key: value for key, value in job.request.items() if key != "model"},
            parent=production if _option(job.request, "pretrained") else None,
            baseline=production,
        )

    def _verdict(self, job: Job, request: TrainRequest, result: TrainResult) -> tuple[bool, str]:
        """Whether the result shall serve, and why."""
        serving, baseline = self._store.serving(job.name), request.baseline
        if not _option(job.request, "guard"):
            return True, "which serves now: the guard was off"
        if serving is None:
            return True, "which serves now as the model's first"
        if baseline is None or serving != baseline.version:
            return False, f"kept and not promoted: {serving} came to serve while this was trained"
        if result.metric is None or result.baseline is None:
            return True, f"which serves now: how it compares with {serving} could not be measured"
        figures = f"{result.metric:.4f} against {result.baseline:.4f} of {serving} on the same validation images"
        if result.metric < result.baseline:
            return False, f"kept and not promoted: it scores worse, {figures}"
        return True, f"which serves now: {figures}"


def run_folder(settings: Settings, job_id: str) -> Path:
    """Where a job's curves and pictures lie."""
    return settings.workspace / "runs" / checked_name(job_id, "job")


def _option(request: Mapping[str, Any], name: str) -> bool:
    """An option of `OPTIONS` that is true or false. Raises BadRequest."""
    return parse_flag(request.get(name, OPTIONS[name]), name)


def _workers(request: Mapping[str, Any]) -> int:
    try:
        workers = int(request.get("workers") or 0)
    except (TypeError, ValueError):
        workers = -1
    if workers < 0:
        raise BadRequest("workers must be a whole number, 0 for as many as suit this server")
    return workers


def _digest(pairs: list[dict[str, str]]) -> dict[str, Any]:
    """The data as a version's card names them: labels by content, images by name and size.

    Labels are what changes between two trainings; reading every image again would take minutes.
    """
    whole = hashlib.sha256()
    for pair in pairs:
        image, label = Path(pair["image"]), Path(pair["label"])
        whole.update(f"{image.name} {image.stat().st_size} {sha256_of(label)}\n".encode())
    return {"sha256": whole.hexdigest(), "pairs": len(pairs)}
