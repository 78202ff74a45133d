"""The work of background jobs on single images: scoring an image, or labelling it with a model.

`ImageWork` describes the work; `ImageWorker` does it, in any process. Its effects are idempotent: a label is saved by
one call of the datastore, an uncertainty map by one rename.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayapp.active_learning.score_files import save_uncertainty
from rayapp.active_learning.scoring_methods import Case, Score, options_of
from rayapp.app import validation
from rayapp.app.app_loader import app_class
from rayapp.app.label_app import LabelApp
from rayapp.config import Settings
from rayapp.datastore.interfaces import Author, Datastore, Labelled
from rayapp.errors import AppBroken, BadRequest, Conflict
from rayapp.imaging.reader import read_volume
from rayapp.inference.infer_task import InferTask, Prompts
from rayapp.inference.label_file import encode_prediction
from rayapp.protocol import FINAL, JobKind

WRITTEN = (".nii.gz", ".nii", ".nrrd")
"""Formats of predicted labels: the image's own if it is among these, else the first."""


@dataclass(frozen=True, kw_only=True)
class ImageWork:
    """The work that a job does on each of its images.

    Attributes:
        job_id: The job's id.
        kind: Scoring or batch inference.
        name: Name of the scoring method, or of the model that labels.
        model: Name of the model to load; None for scoring methods that need none.
        version: Version of that model; None for a model without versions.
        user: The user who submitted the job.
        request: Options of the scoring method or of the model.
    """

    job_id: str
    kind: JobKind
    name: str
    model: str | None
    version: str | None
    user: str
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageAnswer:
    """The result of the work on one image.

    Attributes:
        seconds: Duration of the work.
        score: The score; None if there was nothing to score, and for batch inference.
    """

    seconds: float
    score: Score | None = None


class ImageWorker:
    """Works on images with an app and a model of its own. Belongs to one thread."""

    def __init__(self, settings: Settings, datastore: Datastore) -> None:
        """A worker that loads its app and model with the first image.

        Args:
            settings: The server's settings.
            datastore: The datastore.
        """
        self._settings = settings
        self._datastore = datastore
        self._app: LabelApp | None = None
        self._task: tuple[str, str | None, InferTask] | None = None

    def __call__(self, work: ImageWork, image_id: str) -> ImageAnswer:
        """Work on an image.

        Args:
            work: The work.
            image_id: The image's id.

        Raises:
            NotFound: If the image or the model does not exist any more.
            Unreadable, BadRequest: If this image cannot be worked on.
            AppBroken, ModelBroken: If no image can be worked on.
        """
        began = time.perf_counter()
        score: Score | None = None
        if work.kind is JobKind.SCORING:
            score = self._score(work, image_id)
        else:
            self._label(work, image_id)
        return ImageAnswer(seconds=time.perf_counter() - began, score=score)

    def _score(self, work: ImageWork, image_id: str) -> Score | None:
        app = self._loaded_app()
        method = app.scoring.get(work.name)
        if method is None:
            raise AppBroken(f"the app has no scoring method {work.name!r}; it has {', '.join(app.scoring) or 'none'}")
        case = Case(
            image=self._datastore.image(image_id),
            labels=self._datastore.labels(image_id),
            max_bytes=self._settings.max_volume,
        )
        score = method.score(case, options_of(method, work.request), self._loaded_task(work))
        if score is not None and score.uncertainty is not None:
            save_uncertainty(self._settings.studies, work.name, image_id, score.uncertainty)
            score = Score(**{**vars(score), "uncertainty": None})
        return score

    def _label(self, work: ImageWork, image_id: str) -> None:
        task = self._loaded_task(work)
        if task is None:
            raise BadRequest("batch inference needs a model: name the one that shall label the images")
        image = self._datastore.image(image_id)
        tag, labels = str(work.request["label_tag"]), self._datastore.labels(image_id)
        if FINAL in labels and work.request.get("images") == "unlabeled":
            user = labels[FINAL].info.get("user", "somebody")
            raise Conflict(f"skipped, since {user} saved a final label after the job began")
        volume = read_volume(image.path, max_bytes=self._settings.max_volume)
        prediction = task.predict(task.prepare(volume), Prompts(), work.request)
        prediction = validation.checked_prediction(prediction, task, volume.shape, self._loaded_app().app_dir)
        ext = str(work.request.get("result_extension") or image.ext)
        ext = ext if ext in WRITTEN else WRITTEN[0]
        staged = self._datastore.stage(ext)
        try:
            staged.write_bytes(encode_prediction(prediction, task.info, volume.affine, ext))
            self._datastore.save_label(
                image_id,
                tag,
                staged,
                ext,
                info={
                    "model": work.name,
                    "params": {"label_names": dict(task.info.labels), **prediction.params},
                    "job": work.job_id,
                },
                author=Author(user=work.user),
                model_version=work.version,
                expected=labels[tag].number if tag in labels else 0,  # nobody's save meanwhile is replaced
            )
        finally:
            staged.unlink(missing_ok=True)

    def _loaded_app(self) -> LabelApp:
        if self._app is None:
            self._app = app_class(self._settings).of(self._settings)
        return self._app

    def _loaded_task(self, work: ImageWork) -> InferTask | None:
        """The model's task, loaded, in the version that the job started with; None for work without a model."""
        if work.model is None:
            return None
        if self._task is None or self._task[:2] != (work.model, work.version):
            app = self._loaded_app()
            if work.version is None:
                task = app.task(work.model)
            else:
                task = app.make_task(app.models.version(work.model, work.version))
            task.load()
            self._task = (work.model, work.version, task)
        return self._task[2]


def images_of(request: Mapping[str, Any], default: Labelled) -> Labelled:
    """The images that a request selects: `unlabeled`, `labeled` or `all`.

    Raises:
        BadRequest: For another value.
    """
    images = request.get("images") or default
    if images not in ("unlabeled", "labeled", "all"):
        raise BadRequest(f"images must be one of unlabeled, labeled, all, not {str(images)[:60]!r}")
    return images
