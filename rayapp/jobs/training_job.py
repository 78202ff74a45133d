"""Training jobs: select the data, run the trainer, publish the result, and decide on its promotion.

Curves and pictures are kept in `<workspace>/runs/<job>/` as long as the job's record; checkpoints are kept in
`<workspace>/checkpoints/<job>/` until the job ends. `request.json` in the run's folder fixes the images, labels and
parent version when the job starts, so that a resumed run uses the same.
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
from rayapp.files.durable import make_folder, replacing
from rayapp.jobs.queue import JobContext, Outcome
from rayapp.models.store import ModelStore, ModelVersion, sha256_of
from rayapp.protocol import checked_name, parse_flag
from rayapp.training.train_task import Pair, TrainRequest, TrainResult

logger = logging.getLogger(__name__)

OPTIONS: Mapping[str, Any] = {"pretrained": True, "guard": True, "workers": 0}
"""Options of every training, in addition to the trainer's own: `pretrained` fine-tunes the version in production,
`guard` does not promote a worse result, `workers` limits the number of workers (0: one for each GPU, or one on the
CPU)."""
SURE = 0.8
"""Least share of bootstrap samples of the validation images in which a promoted version is better: it is the best of
several looks at these images, while the version in production has been looked at once."""
REQUEST = "request.json"


class Publisher(Protocol):
    """Publishes model versions."""

    def publish(
        self,
        name: str,
        weights: Path,
        card: Mapping[str, Any],
        *,
        request: str,
        promote: bool = True,
        expected: str | None = None,
    ) -> ModelVersion:
        """See `rayapp.serving.catalogue.Catalogue.publish`."""


class TrainingBackend(Protocol):
    """Executes trainings."""

    def __call__(self, job: Job, request: TrainRequest, checkpoints: Path, context: JobContext) -> TrainResult | None:
        """Train, from the newest checkpoint if there is one.

        Args:
            job: The job's record.
            request: The run.
            checkpoints: Folder of the run's checkpoints.
            context: Receives notes and progress, and signals the stop.

        Returns:
            The result, or None when the job was stopped.
        """


class Training:
    """The runner of training jobs."""

    def __init__(
        self, *, settings: Settings, datastore: Datastore, models: Publisher, backend: TrainingBackend
    ) -> None:
        """A runner.

        Args:
            settings: The server's settings.
            datastore: The datastore.
            models: Publishes the results.
            backend: Executes the trainings.
        """
        self._settings = settings
        self._store = ModelStore.of(settings)
        self._datastore = datastore
        self._models = models
        self._backend = backend

    def check(self, name: str, request: Mapping[str, Any]) -> None:
        """See `Runner.check`.

        Raises:
            BadRequest: If no image has a final label, or an option has a value that is not allowed.
        """
        checked_name(name, "model")
        _workers(request)
        for name in ("pretrained", "guard"):
            _option(request, name)
        if not self._datastore.status()["completed"]:
            raise BadRequest("no image has a final label yet: save one, then train")

    def run(self, job: Job, context: JobContext) -> Outcome | None:
        """See `Runner.run`."""
        request = self._request(job)
        published = self._store.published(job.name, job.id)
        if published is not None:  # a crash came between the publication and the job's record
            weights, card = published.weights, published.card
        else:
            result = self._backend(job, request, self._checkpoints(job), context)
            if result is None:
                return None
            weights, card = result.weights, self._card(job, request, result)
        verdict = card["verdict"]
        version = self._models.publish(
            job.name, weights, card, request=job.id, promote=verdict["promoted"], expected=verdict["against"]
        )
        verdict = version.card["verdict"]
        return Outcome(
            text=f"published version {version.version}, {verdict['why']}",
            stats=verdict["stats"],
            result={"version": version.version, **{key: verdict[key] for key in ("promoted", "metric", "baseline")}},
        )

    def _card(self, job: Job, request: TrainRequest, result: TrainResult) -> dict[str, Any]:
        """The version's card, with the verdict on its promotion."""
        serving = self._store.serving(job.name)
        promoted, why = _verdict(job, request, result, serving)
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
                # Checking and publishing may take minutes: it is promoted only while this version serves.
                "against": (serving or "") if _option(job.request, "guard") else None,
                "metric": result.metric,
                "baseline": result.baseline,
                "stats": dict(result.stats),
            },
        }

    def clean(self, job: Job) -> None:
        """Remove checkpoints and weights, which are published as a version; of a stopped job remove everything."""
        for folder in (self._checkpoints(job), self._images(job)):
            shutil.rmtree(folder, ignore_errors=True)
        folder = run_folder(self._settings, job.id)
        if job.state is State.STOPPED:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for file in (*folder.rglob("*.safetensors"), *folder.glob(".*")):
            file.unlink(missing_ok=True)

    def _checkpoints(self, job: Job) -> Path:
        return self._settings.workspace / "checkpoints" / job.id

    def _images(self, job: Job) -> Path:
        """Folder that keeps the images of an archive while the job needs them."""
        return self._settings.workspace / "images" / job.id

    def _request(self, job: Job) -> TrainRequest:
        folder = run_folder(self._settings, job.id)
        file = folder / REQUEST
        if not file.exists():
            make_folder(folder)
            pairs = self._datastore.datalist(immutable=True, images=self._images(job))
            if not pairs:
                raise BadRequest("no image has a final label any more: save one, then train again")
            versions = [self._store.version(job.name, version) for version in self._store.versions(job.name)]
            fixed = {
                "pairs": pairs,
                "data": _digest(pairs),
                "production": self._store.serving(job.name),
                "tried": max((version.designed_for for version in versions), default=0),
            }
            with replacing(file) as staged:
                staged.write_text(json.dumps(fixed))
        fixed = json.loads(file.read_text())
        serving = fixed["production"]
        production = None if serving is None else self._store.version(job.name, serving)
        return TrainRequest(
            model=job.name,
            pairs=[Pair.of(pair) for pair in fixed["pairs"]],
            folder=folder,
            params={key: value for key, value in job.request.items() if key != "model"},
            parent=production if _option(job.request, "pretrained") else None,
            baseline=production,
            tried=fixed["tried"],
        )


def run_folder(settings: Settings, job_id: str) -> Path:
    """The folder of a job's curves and pictures."""
    return settings.workspace / "runs" / checked_name(job_id, "job")


def _verdict(job: Job, request: TrainRequest, result: TrainResult, serving: str | None) -> tuple[bool, str]:
    """True if the result shall be promoted in place of the version `serving`, and the reason."""
    baseline = request.baseline
    if not _option(job.request, "guard"):
        return True, "promoted to production: the guard was off"
    if serving is None:
        return True, "promoted to production as the model's first version"
    if baseline is None or serving != baseline.version:
        return False, f"kept and not promoted: {serving} was promoted during this training"
    if result.metric is None or result.baseline is None:
        return True, f"promoted to production: it could not be compared with {serving}"
    comparison = f"{result.metric:.4f} against {result.baseline:.4f} of {serving} on the same validation images"
    if result.metric <= result.baseline:
        how = "worse" if result.metric < result.baseline else "no better"
        return False, f"kept and not promoted: it scores {how}, {comparison}"
    sure = result.card.get("compared", {}).get("better", 1.0)
    if sure < SURE:
        return False, (
            f"kept and not promoted: {comparison}, which may be chance (better in {sure:.0%} of bootstrap samples of "
            f"the images, {SURE:.0%} are asked for); `rayapp models promote` promotes it all the same"
        )
    return True, f"promoted to production: {comparison}"


def _option(request: Mapping[str, Any], name: str) -> bool:
    """The value of an option of `OPTIONS` that is true or false.

    Raises:
        BadRequest: If the request has another value.
    """
    return parse_flag(request.get(name, OPTIONS[name]), name)


def _workers(request: Mapping[str, Any]) -> int:
    try:
        workers = int(request.get("workers") or 0)
    except (TypeError, ValueError):
        workers = -1
    if workers < 0:
        raise BadRequest(
            f"workers must be a whole number of at least 0, where 0 leaves it to the server, not "
            f"{str(request.get('workers'))[:60]!r}"
        )
    return workers


def _digest(pairs: list[dict[str, str]]) -> dict[str, Any]:
    """Digest of the training data for a version's card: over the labels' contents and the images' names and sizes.

    Labels are what changes from one training to the next; reading every image again would take minutes.
    """
    digest = hashlib.sha256()
    for pair in pairs:
        image, label = Path(pair["image"]), Path(pair["label"])
        digest.update(f"{image.name} {image.stat().st_size} {sha256_of(label)}\n".encode())
    return {"sha256": digest.hexdigest(), "pairs": len(pairs)}
