"""NNInteractiveTask: segmentation of any structure by nnInteractive (Isensee et al., 2025), with a network from a model
folder.

The network, its zoom and its memory of prompts are those of the official package, which the extra
`rayapp[nninteractive]` installs and which is imported only when a model is loaded. Requests for all images share one
network; each image has a session, which is brought to the prompts of each request. The network sees the image as it is
stored, with its own voxels, as in nnInteractive's clients.

A checkpoint is a pickle, which can run code when it is loaded: a folder is trusted like an app.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Bools, Labels
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo, label_params
from rayapp.inference.methods.nninteractive_calls import START, Abilities, calls_of
from rayapp.inference.methods.nninteractive_session import ReplayedSession
from rayapp.inference.network import cancellation
from rayapp.inference.prompts.parse import BACKGROUND as BACKGROUND_NAME
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from rayapp.inference.stage_clock import StageClock
from rayapp.inference.zoom.lowering import foreground
from rayapp.models.nninteractive_folder import NNInteractiveFolder

logger = logging.getLogger(__name__)

MODULE = "nnInteractive.inference.inference_session"
"""Module of the official package that contains its session."""


class NNInteractiveTask:
    """Segmentation of the prompted structure as label 1.

    Args:
        name: The model's name, for error messages.
        folder: The model folder.
    """

    def __init__(self, name: str, folder: NNInteractiveFolder) -> None:
        self._name = name
        self._folder = folder
        self._loading = threading.Lock()
        self._artifacts: dict[str, Any] | None = None
        self._abilities: Abilities = {}
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._info = TaskInfo(
            type="deepgrow",
            labels={},
            dimension=3,
            description="nnInteractive: any structure by clicks, boxes, strokes, curves or a mask; "
            f"weights {folder.name}, licence: {folder.licence}",
            version=folder.name,
            drawings=True,
            ordered=True,
        )

    @property
    def info(self) -> TaskInfo:
        """The model's entry in `/info/`; the description names the licence of the weights."""
        return self._info

    @property
    def version(self) -> str:
        """The folder's name."""
        return self._folder.name

    def load(self) -> None:
        """Load the network once, to be shared by all sessions.

        Raises:
            ModelBroken: If the package is not installed, with what to install, or the folder cannot be loaded.
        """
        with self._loading:
            if self._artifacts is not None:
                return
            session = self._new_session()
            try:
                self._folder.check()
                artifacts: dict[str, Any] = session._load_model_artifacts_from_disk(str(self._folder.root))
                session.initialize_from_loaded_artifacts(artifacts)
                session.warmup()
            except ModelBroken:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise ModelBroken(f"model {self._name!r}: {self._folder.root} cannot be loaded: {reason}") from error
            artifacts["network"].requires_grad_(False)
            artifacts["network"].register_forward_pre_hook(lambda *_: cancellation.checkpoint())
            self._abilities = {**session.supported_interactions, START: bool(session.supports_initial_label)}
            self._artifacts = artifacts
            logger.info("model %s: weights %s, licence: %s", self._name, self.version, self._folder.licence)

    def _new_session(self) -> Any:
        """A session without a network."""
        try:
            module = importlib.import_module(MODULE)
        except ImportError as error:
            raise ModelBroken(
                f"model {self._name!r} needs the package nnInteractive: pip install 'rayapp[nninteractive]' ({error})"
            ) from error
        vars(module)["print"] = _printed
        # Its default number of threads would be set for this thread, which has been given its own.
        return module.nnInteractiveInferenceSession(device=self._device, torch_n_threads=torch.get_num_threads())

    def prepare(self, volume: Volume) -> ReplayedSession:
        """A session with the image's first channel."""
        self.load()
        session = self._new_session()
        session.initialize_from_loaded_artifacts(self._artifacts)
        image = volume.array[0].T
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            image = np.nan_to_num(image, posinf=0.0, neginf=0.0)
        return ReplayedSession(session, image[None])

    def predict(self, prepared: ReplayedSession, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:  # noqa: ARG002
        """Segment the prompted structure.

        Raises:
            BadRequest: Without any prompt for a structure, for prompts that the network does not take, or for an image
                in which all voxels are zero.
        """
        clock = StageClock()
        calls = calls_of(prompts, prepared.shape, self._abilities)
        if not any(call.includes for call in calls):
            raise BadRequest(f"model {self._name!r} needs a prompt: click on a structure, or draw a box")
        try:
            answer = prepared.answer(calls)
        except ValueError as error:  # which is what the official session raises for what it cannot work with
            raise BadRequest(f"model {self._name!r}: {error}") from error
        clock.stage("infer")
        labels = enforced(answer.T, prompts)
        clock.stage("invert")
        return Prediction(labels=labels, params=label_params(prompts), seconds=clock.seconds)


def enforced(answer: Bools, prompts: Prompts) -> Labels:
    """The answer (I, J, K) as a label map in which clicks and strokes are enforced and other structures are
    unchanged.
    """
    labels = answer.astype(np.uint8, order="F")
    if prompts.start is not None:
        labels[prompts.start > 1] = 0
    for turn in prompts.turns or (prompts,):
        if turn.marks is not None:
            turn.marks.paint(labels, FOREGROUND, 1)
            turn.marks.paint(labels, BACKGROUND, 0)
        for points, value in ((foreground(turn), 1), (turn.clicks.get(BACKGROUND_NAME, ()), 0)):
            for point in points:
                labels[point] = value
    return labels


def _printed(*parts: object, **_: object) -> None:
    """Replacement for `print` in the official module, which reports every step to stdout."""
    logger.debug("%s", " ".join(map(str, parts)))
