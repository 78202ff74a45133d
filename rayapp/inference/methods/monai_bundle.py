"""BundleTask: a MONAI bundle served as it is, by what it can do rather than by what it is called.

A bundle whose transforms add guidance from clicks is a DeepEdit (one channel per label) or a DeepGrow (one structure,
channels for clicks on it and beside it; of volumes, or of slices); one whose inferer takes points and classes is like
VISTA-3D; one with a detector finds boxes; any other segments. `predict` runs one at a time; `prepare` in several
threads at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Point, Prediction, Prompts, TaskInfo, label_params
from rayapp.inference.methods import vista
from rayapp.inference.methods.deepgrow import clicked_slice, foreground
from rayapp.inference.network import detections
from rayapp.inference.network.monai_transforms import Data, PreparedData, TransformPipeline, checked_output, positions
from rayapp.inference.network.network import dropout
from rayapp.inference.network.restoration import clear_outside
from rayapp.inference.network.sampling import TransformedImage, probabilities
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.stage_clock import StageClock
from rayapp.models.bundle_folder import INFERENCE, METADATA, BundleFolder, targets

SEGMENTATION, DEEPEDIT, DEEPGROW, VISTA, DETECTION = "segmentation", "deepedit", "deepgrow", "vista3d", "detection"
"""Types as clients know them."""
NO_VALUE = 255
"""What VISTA-3D leaves where its window was not."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a bundle's config makes."""

    pipeline: TransformPipeline
    network: Any
    inferer: Any
    detector: Any
    everything: Sequence[int]


class BundleTask:
    """One bundle.

    Args:
        folder: where it lies.
        clicks: for a DeepEdit, False serves its automatic segmentation alone.
        weights, version: of a version trained since; the bundle's own by default.

    Raises:
        ModelBroken: if its metadata or its inference config is not there or says too little.
    """

    def __init__(
        self, folder: BundleFolder, *, clicks: bool = True, weights: Path | None = None, version: str | None = None
    ) -> None:
        self._folder = folder
        self._weights = weights
        metadata, config = folder.read(METADATA), folder.read(INFERENCE)
        self.kind = kind_of(config)
        self._clicks = clicks and self.kind == DEEPEDIT
        self.version = version or f"bundle {metadata.get('version', '')}".strip()
        self._description = str(metadata.get("description") or metadata.get("name") or folder.name)
        image, self._shown = self._format(metadata, "inputs")
        pred, found = self._format(metadata, "outputs")
        self._image, self._pred = image, pred
        self._flat = len(self._shown.get("spatial_shape") or ()) == 2
        if self._flat and self.kind != DEEPGROW:
            raise folder.broken("it is two-dimensional, and images here are volumes")
        self._channels = int(self._shown.get("num_channels") or 1)
        if self.kind in (DEEPEDIT, DEEPGROW):  # whose other channels are clicks
            self._channels = int(config.get("number_intensity_ch") or 1)
        self._own_names = self._names(config, found)
        self._first = 0 if 0 in self._own_names.values() else 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._loading = threading.Lock()
        self._parts: Parts | None = None

    def _format(self, metadata: Mapping[str, Any], side: str) -> tuple[str, Mapping[str, Any]]:
        try:
            key, what = next(iter(metadata["network_data_format"][side].items()))
            return str(key), dict(what)
        except (KeyError, TypeError, AttributeError, StopIteration, ValueError):
            text = f"configs/metadata.json names no {side} under network_data_format"
            raise self._folder.broken(text) from None

    def _names(self, config: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, int]:
        """Label names as the bundle writes them, with their values; background, if there is one, is 0."""
        given = config.get("label_names")
        if self.kind == DEEPEDIT and isinstance(given, dict) and all(isinstance(v, int) for v in given.values()):
            return {str(name): value for name, value in given.items()}
        channels = found.get("channel_def") or found.get("label_def")
        if not isinstance(channels, dict) or not channels:
            raise self._folder.broken("configs/metadata.json has no channel_def for what the network puts out")
        names = {str(name): int(index) for index, name in channels.items()}
        if any(name.lower() == BACKGROUND for name in names) or self.kind == DETECTION:
            return names
        return {name: index + 1 for name, index in names.items()}

    def automatic(self) -> BundleTask:
        """The same model without clicks."""
        return BundleTask(self._folder, clicks=False, weights=self._weights, version=self.version)

    @property
    def labels(self) -> dict[str, int]:
        """Structures by name, in lower case; background is left out."""
        return {name.lower(): value for name, value in self._own_names.items() if name.lower() != BACKGROUND}

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows."""
        labels = {} if self.kind == DEEPGROW else self.labels
        if self._clicks:
            labels = {BACKGROUND: 0, **labels}
        gpu = self.device.type == "cuda"
        return TaskInfo(
            type=SEGMENTATION if self.kind == DEEPEDIT and not self._clicks else self.kind,
            labels=labels,
            dimension=2 if self._flat else 3,
            description=self._description,
            config={"device": [torch.cuda.get_device_name(self.device) if gpu else "cpu"]},
            version=self.version,
        )

    def load(self) -> None:
        """Make what the config describes and load its weights, once. Raises ModelBroken."""
        with self._loading:
            if self._parts is None:
                self._parts = self._make()

    def _make(self) -> Parts:
        over = {"device": self.device, "use_click": self.kind == DEEPEDIT}
        with self._folder.parser(INFERENCE, over) as parser:

            def made(*keys: str) -> Any:
                key = next((key for key in keys if key in parser), None)
                return None if key is None else parser.get_parsed_content(key)

            network = self._folder.network(parser, self._weights or self._folder.weights())
            network = network.to(self.device).eval()
            for parameter in network.parameters():  # TorchScript has no requires_grad_ for all of them
                parameter.requires_grad_(False)
            detector = made("detector")
            if detector is not None:
                made("detector_ops")
                detector.eval()
            from monai.inferers import SimpleInferer

            return Parts(
                pipeline=TransformPipeline(
                    pre=made("preprocessing", "pre_transforms"),
                    post=made("postprocessing", "post_transforms") if detector is None else None,
                    image=self._image if detector is None else "image",
                    pred=self._pred,
                ),
                network=network,
                inferer=made("inferer") or SimpleInferer(),
                detector=detector,
                everything=made("everything_labels") or sorted(self.labels.values()),
            )

    @property
    def parts(self) -> Parts:
        """What the config made. Loads."""
        self.load()
        if self._parts is None:
            raise self._folder.broken("it is not loaded")
        return self._parts

    def prepare(self, volume: Volume) -> PreparedData:
        """Run the bundle's transforms up to those that need prompts. Raises BadRequest for too few channels."""
        if volume.channels < self._channels:
            name = self._folder.name
            raise BadRequest(f"model {name!r} needs {self._channels} channels; this image has {volume.channels}")
        channels = Volume(array=volume.array[: self._channels], affine=volume.affine)
        return self.parts.pipeline.prepare(channels)

    @torch.no_grad()
    def predict(self, prepared: PreparedData, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Run the bundle for these prompts. Raises BadRequest for prompts that it cannot do with."""
        clock, parts = StageClock(), self.parts
        wish = self._asked(prepared, prompts, config) if self.kind == VISTA else None
        data = parts.pipeline.complete(prepared, self._entries(prepared, prompts, wish))
        clock.stage("pre")
        if self.kind == DETECTION:
            return self._boxes(data, prepared, clock)
        output = self._infer(data, prepared, wish)
        clock.stage("infer")
        labels = parts.pipeline.labels(data, output[0], prepared.source, first=self._first)
        if self.kind == VISTA:
            labels[labels == NO_VALUE] = 0
        clear_outside(labels, prompts.roi)
        clock.stage("invert")
        return Prediction(
            labels=labels, params=label_params(prompts) if self.kind == DEEPGROW else {}, seconds=clock.seconds
        )

    # Samples, for `rayapp.active_learning.uncertainty`

    def network_input(self, volume: Volume) -> TransformedImage:
        """The image as the network takes it, without the channels of clicks."""
        prepared, pipeline = self.prepare(volume), self.parts.pipeline
        data = pipeline.complete(prepared, self._entries(prepared, Prompts(), None))
        image = data[self._image].as_tensor()[: self._channels].to(self.device, torch.float32)
        return TransformedImage(pipeline=pipeline, data=data, source=prepared.source, image=image)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (N, 1 + L, *shape), background first, of images (N, C, *shape) as of `network_input`."""
        clicks = len(self._own_names) if self.kind == DEEPEDIT else 0
        images = functional.pad(images, (0, 0) * 3 + (0, clicks))
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            answers = [self._tensor(self.parts.inferer(inputs=one[None], network=self.parts.network)) for one in images]
        return probabilities(torch.cat(answers), max(self.labels.values()), sigmoid=self.parts.pipeline.sigmoid)

    def dropout(self, probability: float) -> AbstractContextManager[None]:
        """See `rayapp.inference.network.network.dropout`."""
        return dropout(self.parts.network, probability, name=self._folder.name)

    def _asked(self, prepared: PreparedData, prompts: Prompts, config: Mapping[str, Any]) -> vista.Asked:
        return vista.asked(prompts, config, self.labels, prepared.source.shape, self.parts.everything)

    def _entries(self, prepared: PreparedData, prompts: Prompts, wish: vista.Asked | None) -> Data:
        """What the bundle's own transforms look for beside the image."""
        if wish is not None:
            classes = None if wish.classes is None else list(wish.classes)
            return {"label_prompt": classes, "point_labels": list(wish.inside) or None}
        if self.kind == DEEPGROW:
            clicks = {FOREGROUND: foreground(prompts), BACKGROUND: tuple(prompts.clicks.get(BACKGROUND, ()))}
            if not any(clicks.values()):
                raise BadRequest(f"model {self._folder.name!r} segments what is clicked: click on a structure")
            on = {"slice": clicked_slice(prompts, self._folder.name)} if self._flat else {}
            return {**{name: prepared.clicks(points) for name, points in clicks.items()}, **on}
        if self.kind != DEEPEDIT:
            return {}
        clicked = self._clicked(prompts) if self._clicks else {}
        return {name: prepared.clicks(clicked.get(name.lower(), ())) for name in self._own_names}

    def _clicked(self, prompts: Prompts) -> dict[str, Sequence[Point]]:
        """Clicks by label, `foreground` being the label that is meant."""
        clicks = {name: tuple(points) for name, points in prompts.clicks.items()}
        loose = clicks.pop(FOREGROUND, ())
        if loose:
            only = next(iter(self.labels)) if len(self.labels) == 1 else None
            label = prompts.label if prompts.label in self.labels else only
            if label is None:
                raise BadRequest(f"foreground clicks: name their structure in 'label', one of {', '.join(self.labels)}")
            clicks[label] = (*clicks.get(label, ()), *loose)
        return dict(clicks)

    def _infer(self, data: Data, prepared: PreparedData, wish: vista.Asked | None) -> Tensor:
        """(1, C, …) of the network."""
        parts = self.parts
        image = data[self._image]
        images = image.as_tensor()[None].to(self.device, torch.float32)
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            if wish is None:
                output = parts.inferer(inputs=images, network=parts.network)
            else:
                output = self._prompted(images, data, positions(wish.points, prepared.source, image))
        return self._tensor(output)

    def _tensor(self, output: Any) -> Tensor:
        """An inferer's answer, without its deep supervision. Raises ModelBroken."""
        output = output[0] if isinstance(output, (list, tuple)) else output
        if not isinstance(output, Tensor):
            raise self._folder.broken(f"its network puts out a {type(output).__name__}, and not one tensor")
        if self.kind == VISTA:  # which answers NaN where its window was not
            return output.float()
        try:
            return checked_output(output.float())
        except ModelBroken as error:
            raise self._folder.broken(error.detail) from None

    def _prompted(self, images: Tensor, data: Data, points: list[list[int]]) -> Any:
        """What a VISTA-3D-like inferer says to classes and points."""
        classes, signs = data["label_prompt"], data["point_labels"]
        vector = None if classes is None else torch.tensor(classes, device=self.device)[:, None]
        coords = torch.tensor([points], device=self.device, dtype=torch.float32) if points else None
        inside = torch.tensor([signs], device=self.device) if points else None
        data |= {"label_prompt": vector, "points": coords, "point_labels": inside}
        return self.parts.inferer(
            inputs=images,
            network=self.parts.network,
            point_coords=coords,
            point_labels=inside,
            class_vector=vector,
            labels=None,
            label_set=None,
        )

    def _boxes(self, data: Data, prepared: PreparedData, clock: StageClock) -> Prediction:
        parts = self.parts
        image = data["image"]
        found = parts.inferer([image.as_tensor().to(self.device, torch.float32)], parts.network)[0]
        clock.stage("infer")
        detector = parts.detector
        result = detections.boxes_in_lps(
            found[detector.target_box_key].cpu().numpy(),
            found[detector.target_label_key].cpu().numpy(),
            found[detector.pred_score_key].cpu().numpy(),
            affine=image.affine.numpy(),
            shape=tuple(image.shape[-3:]),
            names={value: name for name, value in self.labels.items()},
        )
        clock.stage("post")
        return detections.prediction(result, prepared.source.shape, clock.seconds)


def kind_of(config: Mapping[str, Any]) -> str:
    """What a bundle can do, by what its inference config makes use of."""
    used = targets(config)
    if "detector" in config:
        return DETECTION
    if any("Guidance" in name and name.endswith("DeepEditd") for name in used):
        return DEEPEDIT
    if used & {"AddGuidanceFromPointsd", "AddGuidanceSignald"}:
        return DEEPGROW
    if used & {"VistaPreTransformd", "Vista3dInferer"}:
        return VISTA
    return SEGMENTATION
