"""BundleTask: a MONAI bundle served unchanged, by what it can do and not by its name.

- A bundle whose transforms add guidance from clicks is a DeepEdit (one guidance channel per label), or a DeepGrow (one
  structure, with channels for clicks on it and off it; in volumes or in slices).
- One whose inferer takes points and classes is like VISTA-3D.
- One with a detector detects boxes.
- Any other is an automatic segmentation.

`prepare` may run in several threads at once, `predict` in one at a time.
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
from rayapp.inference.methods.deepgrow import clicked_slice, foreground_clicks
from rayapp.inference.methods.vista import VistaPrompts, vista_prompts
from rayapp.inference.network import detections
from rayapp.inference.network.cancellation import stepping
from rayapp.inference.network.monai_transforms import Data, PreparedData, TransformPipeline, checked_output, positions
from rayapp.inference.network.network import dropout
from rayapp.inference.network.sampling import TransformedImage, probabilities
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.to_clicks import clear_outside
from rayapp.inference.stage_clock import StageClock
from rayapp.models.bundle_folder import INFERENCE, METADATA, BundleFolder, targets

SEGMENTATION, DEEPEDIT, DEEPGROW, VISTA, DETECTION = "segmentation", "deepedit", "deepgrow", "vista3d", "detection"
"""Types of models, as clients know them."""
OUTSIDE_WINDOW = 255
"""Value of voxels that VISTA-3D's window did not cover."""


@dataclass(frozen=True, kw_only=True)
class BundleComponents:
    """The objects that a bundle's inference config describes.

    Attributes:
        pipeline: Transforms before and after the network.
        network: The network.
        inferer: Runs the network over an image.
        detector: The detector, or None.
        all_classes: Label values that a VISTA-3D-like model segments without prompts.
    """

    pipeline: TransformPipeline
    network: Any
    inferer: Any
    detector: Any
    all_classes: Sequence[int]


class BundleTask:
    """A MONAI bundle.

    Args:
        folder: The bundle's folder.
        clicks: False to serve the automatic segmentation of a DeepEdit, without clicks.
        weights: Weights of a version trained since; the bundle's own by default.
        version: Name of that version; the bundle's own by default.

    Raises:
        ModelBroken: If the metadata or the inference config is missing or incomplete.
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
        self._image, input_format = self._data_format(metadata, "inputs")
        self._pred, output_format = self._data_format(metadata, "outputs")
        self._two_dimensional = len(input_format.get("spatial_shape") or ()) == 2
        if self._two_dimensional and self.kind != DEEPGROW:
            raise folder.broken("it is two-dimensional, but images are volumes")
        self._channels = int(input_format.get("num_channels") or 1)
        if self.kind in (DEEPEDIT, DEEPGROW):  # whose other input channels are guidance
            self._channels = int(config.get("number_intensity_ch") or 1)
        self._label_names = self._read_labels(config, output_format)
        self._first = 0 if 0 in self._label_names.values() else 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._loading = threading.Lock()
        self._components: BundleComponents | None = None

    def _data_format(self, metadata: Mapping[str, Any], side: str) -> tuple[str, Mapping[str, Any]]:
        """Key and format of the first of the network's "inputs" or "outputs" in the metadata."""
        try:
            key, data_format = next(iter(metadata["network_data_format"][side].items()))
            return str(key), dict(data_format)
        except (KeyError, TypeError, AttributeError, StopIteration, ValueError):
            text = f"configs/metadata.json has no {side} under network_data_format"
            raise self._folder.broken(text) from None

    def _read_labels(self, config: Mapping[str, Any], output_format: Mapping[str, Any]) -> dict[str, int]:
        """Label names, as the bundle spells them, to values; background, if there is one, is 0."""
        label_names = config.get("label_names")
        by_name = isinstance(label_names, dict) and all(isinstance(value, int) for value in label_names.values())
        if self.kind == DEEPEDIT and by_name:
            return {str(name): value for name, value in config["label_names"].items()}
        channels = output_format.get("channel_def") or output_format.get("label_def")
        if not isinstance(channels, dict) or not channels:
            raise self._folder.broken("configs/metadata.json has no channel_def for the network's output")
        names = {str(name): int(index) for index, name in channels.items()}
        if any(name.lower() == BACKGROUND for name in names) or self.kind == DETECTION:
            return names
        return {name: index + 1 for name, index in names.items()}

    def automatic(self) -> BundleTask:
        """The same model without clicks."""
        return BundleTask(self._folder, clicks=False, weights=self._weights, version=self.version)

    @property
    def labels(self) -> dict[str, int]:
        """Structure name, in lower case, to value; without background."""
        return {name.lower(): value for name, value in self._label_names.items() if name.lower() != BACKGROUND}

    @property
    def info(self) -> TaskInfo:
        """The model's entry in `/info/`."""
        labels = {} if self.kind == DEEPGROW else self.labels
        if self._clicks:
            labels = {BACKGROUND: 0, **labels}
        gpu = self.device.type == "cuda"
        return TaskInfo(
            type=SEGMENTATION if self.kind == DEEPEDIT and not self._clicks else self.kind,
            labels=labels,
            dimension=2 if self._two_dimensional else 3,
            description=self._description,
            config={"device": [torch.cuda.get_device_name(self.device) if gpu else "cpu"]},
            version=self.version,
        )

    def load(self) -> None:
        """Instantiate what the config describes and load the weights; later calls do nothing.

        Raises:
            ModelBroken: If that fails; names the file.
        """
        with self._loading:
            if self._components is None:
                self._components = self._instantiate()

    def _instantiate(self) -> BundleComponents:
        overrides = {"device": self.device, "use_click": self.kind == DEEPEDIT}
        with self._folder.parser(INFERENCE, overrides) as parser:

            def instantiated(*keys: str) -> Any:
                key = next((key for key in keys if key in parser), None)
                return None if key is None else parser.get_parsed_content(key)

            network = self._folder.network(parser, self._weights or self._folder.weights())
            network = network.to(self.device).eval()
            for parameter in network.parameters():  # TorchScript modules have no requires_grad_
                parameter.requires_grad_(False)
            detector = instantiated("detector")
            if detector is not None:
                instantiated("detector_ops")
                detector.eval()
            from monai.inferers import SimpleInferer

            return BundleComponents(
                pipeline=TransformPipeline(
                    pre=instantiated("preprocessing", "pre_transforms"),
                    post=instantiated("postprocessing", "post_transforms") if detector is None else None,
                    image=self._image if detector is None else "image",
                    pred=self._pred,
                ),
                network=network,
                inferer=instantiated("inferer") or SimpleInferer(),
                detector=detector,
                all_classes=instantiated("everything_labels") or sorted(self.labels.values()),
            )

    @property
    def components(self) -> BundleComponents:
        """The instantiated config, loaded if need be."""
        self.load()
        if self._components is None:
            raise self._folder.broken("it is not loaded")
        return self._components

    def prepare(self, volume: Volume) -> PreparedData:
        """Run the bundle's transforms that need no prompts.

        Raises:
            BadRequest: If the image has fewer channels than the network needs.
        """
        if volume.channels < self._channels:
            name = self._folder.name
            raise BadRequest(f"model {name!r} needs {self._channels} channels; this image has {volume.channels}")
        channels = Volume(array=volume.array[: self._channels], affine=volume.affine)
        return self.components.pipeline.prepare(channels)

    @torch.no_grad()
    def predict(self, prepared: PreparedData, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Run the bundle for these prompts.

        Raises:
            BadRequest: For prompts that the bundle cannot use.
            ModelBroken: If the bundle's answer is no mask.
        """
        clock, components = StageClock(), self.components
        vista = None
        if self.kind == VISTA:
            vista = vista_prompts(prompts, config, self.labels, prepared.source.shape, components.all_classes)
        data = components.pipeline.complete(prepared, self._entries(prepared, prompts, vista))
        clock.stage("pre")
        if self.kind == DETECTION:
            return self._detect(data, prepared, clock)
        output = self._infer(data, prepared, vista)
        clock.stage("infer")
        labels = components.pipeline.labels(data, output[0], prepared.source, first=self._first)
        if self.kind == VISTA:
            labels[labels == OUTSIDE_WINDOW] = 0
        clear_outside(labels, prompts.roi)
        clock.stage("invert")
        return Prediction(
            labels=labels, params=label_params(prompts) if self.kind == DEEPGROW else {}, seconds=clock.seconds
        )

    # Samples, for `rayapp.active_learning.uncertainty`

    def network_input(self, volume: Volume) -> TransformedImage:
        """The network's input for an image without prompts, without guidance channels."""
        prepared, pipeline = self.prepare(volume), self.components.pipeline
        data = pipeline.complete(prepared, self._entries(prepared, Prompts(), None))
        image = data[self._image].as_tensor()[: self._channels].to(self.device, torch.float32)
        return TransformedImage(pipeline=pipeline, data=data, source=prepared.source, image=image)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (N, 1 + L, *shape), background first, of images (N, C, *shape) from `network_input`."""
        components = self.components
        guidance_channels = len(self._label_names) if self.kind == DEEPEDIT else 0
        images = functional.pad(images, (0, 0) * 3 + (0, guidance_channels))
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            outputs = [
                self._logits(components.inferer(inputs=i[None], network=stepping(components.network))) for i in images
            ]
        return probabilities(torch.cat(outputs), max(self.labels.values()), sigmoid=components.pipeline.sigmoid)

    def dropout(self, probability: float) -> AbstractContextManager[None]:
        """Monte Carlo dropout; see `rayapp.inference.network.network.dropout`."""
        return dropout(self.components.network, probability, name=self._folder.name)

    def _entries(self, prepared: PreparedData, prompts: Prompts, vista: VistaPrompts | None) -> Data:
        """Entries that the bundle's own transforms read from the dictionary, besides the image."""
        if vista is not None:
            classes = None if vista.classes is None else list(vista.classes)
            return {"label_prompt": classes, "point_labels": list(vista.inside) or None}
        if self.kind == DEEPGROW:
            clicks = {FOREGROUND: foreground_clicks(prompts), BACKGROUND: tuple(prompts.clicks.get(BACKGROUND, ()))}
            if not any(clicks.values()):
                raise BadRequest(f"model {self._folder.name!r} needs a click on a structure")
            where = {"slice": clicked_slice(prompts, self._folder.name)} if self._two_dimensional else {}
            return {**{name: prepared.clicks(points) for name, points in clicks.items()}, **where}
        if self.kind != DEEPEDIT:
            return {}
        by_label = self._clicks_by_label(prompts) if self._clicks else {}
        return {name: prepared.clicks(by_label.get(name.lower(), ())) for name in self._label_names}

    def _clicks_by_label(self, prompts: Prompts) -> dict[str, Sequence[Point]]:
        """Clicks by label, with those under `foreground` assigned to the structure in `label` or the only one."""
        clicks = {name: tuple(points) for name, points in prompts.clicks.items()}
        foreground = clicks.pop(FOREGROUND, ())
        if foreground:
            only = next(iter(self.labels)) if len(self.labels) == 1 else None
            label = prompts.label if prompts.label in self.labels else only
            if label is None:
                raise BadRequest(
                    f"foreground clicks are ambiguous: name their structure in 'label', one of {', '.join(self.labels)}"
                )
            clicks[label] = (*clicks.get(label, ()), *foreground)
        return dict(clicks)

    def _infer(self, data: Data, prepared: PreparedData, vista: VistaPrompts | None) -> Tensor:
        """The network's output, (1, C, …)."""
        components = self.components
        image = data[self._image]
        images = image.as_tensor()[None].to(self.device, torch.float32)
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            if vista is None:
                output = components.inferer(inputs=images, network=stepping(components.network))
            else:
                output = self._run_vista(images, data, positions(vista.points, prepared.source, image))
        return self._logits(output)

    def _logits(self, output: Any) -> Tensor:
        """An inferer's output as one float32 tensor, without deep supervision's further heads.

        Raises:
            ModelBroken: If it is no tensor, or contains NaN.
        """
        output = output[0] if isinstance(output, (list, tuple)) else output
        if not isinstance(output, Tensor):
            raise self._folder.broken(f"its network returns a {type(output).__name__} and not one tensor")
        if self.kind == VISTA:  # which returns NaN where its window was not
            return output.float()
        try:
            return checked_output(output.float())
        except ModelBroken as error:
            raise self._folder.broken(error.detail) from None

    def _run_vista(self, images: Tensor, data: Data, points: list[list[int]]) -> Any:
        """The output of a VISTA-3D-like inferer for classes and points.

        Args:
            images: Shape (1, C, …).
            data: The transforms' dictionary; the prompts in it are replaced by the tensors that the inferer takes.
            points: Points in voxels of `images`.
        """
        classes, inside = data["label_prompt"], data["point_labels"]
        class_vector = None if classes is None else torch.tensor(classes, device=self.device)[:, None]
        coordinates = torch.tensor([points], device=self.device, dtype=torch.float32) if points else None
        point_labels = torch.tensor([inside], device=self.device) if points else None
        data |= {"label_prompt": class_vector, "points": coordinates, "point_labels": point_labels}
        return self.components.inferer(
            inputs=images,
            network=self.components.network,
            point_coords=coordinates,
            point_labels=point_labels,
            class_vector=class_vector,
            labels=None,
            label_set=None,
        )

    def _detect(self, data: Data, prepared: PreparedData, clock: StageClock) -> Prediction:
        """The detector's boxes as a prediction."""
        components = self.components
        image = data["image"]
        output = components.inferer([image.as_tensor().to(self.device, torch.float32)], components.network)[0]
        clock.stage("infer")
        detector = components.detector
        boxes = detections.boxes_in_lps(
            output[detector.target_box_key].cpu().numpy(),
            output[detector.target_label_key].cpu().numpy(),
            output[detector.pred_score_key].cpu().numpy(),
            affine=image.affine.numpy(),
            shape=tuple(image.shape[-3:]),
            names={value: name for name, value in self.labels.items()},
        )
        clock.stage("post")
        return detections.prediction(boxes, prepared.source.shape, clock.seconds)


def kind_of(config: Mapping[str, Any]) -> str:
    """The type of a bundle, by the classes that its inference config uses."""
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
