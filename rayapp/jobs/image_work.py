"""Images: what background jobs do with one image after the other: score it, or let a model label it.

`ImageWork` is what a job asks of every image, `ImageWorker` does it, in whichever process. A worker changes nothing but
what is safe to change twice: a label by one call of the datastore, an uncertainty map by one rename.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayapp.active_learning.score_files import save_uncertainty
from rayapp.active_learning.scoring_methods import Case, Score, options_of
from rayapp.app import validation
from rayapp.app.label_app import LabelApp, app_class
from rayapp.config import Settings
from rayapp.datastore.interfaces import Author, Datastore, Labelled
from rayapp.errors import AppBroken, BadRequest, Conflict
from rayapp.imaging.reader import read_volume
from rayapp.inference.infer_task import InferTask, Prompts
from rayapp.inference.label_file import encode_prediction
from rayapp.protocol import FINAL, JobKind

WRITTEN = (".nii.gz", ".nii", ".nrrd")
"""How labels of a model are written: as the image, where it is one of these, else as the first."""


@dataclass(frozen=True, kw_only=True)
class ImageWork:
    """A job as workers are told it: a scoring method or a model by `name`; `model` and `version` are what it asks."""

    job_id: str
    kind: JobKind
    name: str
    model: str | None
    version: str | None
    user: str
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageAnswer:
    """What a worker found: a score, None where there was nothing to score or the job is no scoring."""

    seconds: float
    score: Score | None = None


class ImageWorker:
    """One process's app. Belongs to one thread."""

    def __init__(self, settings: Settings, datastore: Datastore) -> None:
        self._settings = settings
        self._datastore = datastore
        self._app: LabelApp | None = None
        self._task: tuple[str, str | None, InferTask] | None = None

    def __call__(self, work: ImageWork, image_id: str) -> ImageAnswer:
        """Do one image.

        Raises:
            NotFound: if it, or the model, is gone.
            Unreadable, BadRequest: for an image that nothing can be done with.
            AppBroken, ModelBroken: if nothing can be done with any.
        """
        began = time.perf_counter()
        score: Score | None = None
        if work.kind is JobKind.SCORING:
            score = self._scored(work, image_id)
        else:
            self._label(work, image_id)
        return ImageAnswer(seconds=time.perf_counter() - began, score=score)

    def _scored(self, work: ImageWork, image_id: str) -> Score | None:
        app = self._made()
        method = app.scoring.get(work.name)
        if method is None:
            raise AppBroken(f"the app has no scoring method {work.name!r}")
        case = Case(
            image=self._datastore.image(image_id),
            labels=self._datastore.labels(image_id),
            max_bytes=self._settings.max_volume,
        )
        score = method.score(case, options_of(method, work.request), self._asked(work))
        if score is not None and score.uncertainty is not None:
            save_uncertainty(self._settings.studies, work.name, image_id, score.uncertainty)
            score = Score(**{**vars(score), "uncertainty": None})
        return score

    def _label(self, work: ImageWork, image_id: str) -> None:
        task = self._asked(work)
        if task is None:
            raise BadRequest("say which model shall label the images")
        image = self._datastore.image(image_id)
        tag, labels = str(work.request["label_tag"]), self._datastore.labels(image_id)
        if FINAL in labels and work.request.get("images") == "unlabeled":
            user = labels[FINAL].info.get("user", "somebody")
            raise Conflict(f"skipped, since {user} saved a final label after the job began")
        volume = read_volume(image.path, max_bytes=self._settings.max_volume)
        prediction = task.predict(task.prepare(volume), Prompts(), work.request)
        prediction = validation.checked_answer(prediction, task, volume.shape, self._made().app_dir)
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

    def _made(self) -> LabelApp:
        if self._app is None:
            self._app = app_class(self._settings).of(self._settings)
        return self._app

    def _asked(self, work: ImageWork) -> InferTask | None:
        """The model's task, loaded; that of the version which the job began with."""
        if work.model is None:
            return None
        if self._task is None or self._task[:2] != (work.model, work.version):
            app = self._made()
            if work.version is None:
                task = app.task(work.model)
            else:
                task = app.make_task(app.models.version(work.model, work.version))
            task.load()
            self._task = (work.model, work.version, task)
        return self._task[2]


def images_of(request: Mapping[str, Any], default: Labelled) -> Labelled:
    """Which images a request means. Raises BadRequest."""
    wanted = request.get("images") or default
    if wanted not in ("unlabeled", "labeled", "all"):
        raise BadRequest("images must be one of unlabeled, labeled, all")
    return wanted
