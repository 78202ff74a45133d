"""BasicInferTask: a network of one's own between MONAI transforms, as apps of MONAI Label describe it.

Subclass it and give `pre_transforms`, `post_transforms` and, if need be, `inferer`. Steps that read and write files are
skipped (the server has the image, and sends the mask), and the mask is put back on the image's own grid to the voxel:
nothing has to restore it. See `rayapp.inference.network.monai_transforms`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo
from rayapp.inference.network.monai_transforms import Data, PreparedData, TransformPipeline, checked_output
from rayapp.inference.network.network import dropout
from rayapp.inference.network.sampling import TransformedImage, probabilities
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.stage_clock import StageClock
from rayapp.models.networks import load_weights


class BasicInferTask:
    """One model.

    Args:
        network: takes (1, C, …), gives (1, classes, …).
        weights: a safetensors file; None leaves the network as it is.
        labels: structure name to value.
        type: what clients take it for: segmentation, deepedit or deepgrow.
        channels: of the image, that it needs.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        weights: Path | None,
        labels: Mapping[str, int],
        description: str,
        type: str = "segmentation",
        version: str = "",
        channels: int = 1,
    ) -> None:
        self.version = version
        self.info = TaskInfo(type=type, labels=labels, dimension=3, description=description, version=version)
        self._network = network
        self._weights = weights
        self._channels = channels
        self._loading = threading.Lock()
        self._pipeline: TransformPipeline | None = None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def pre_transforms(self, data: Any = None) -> Sequence[Any]:
        """Dictionary transforms on the key `image`. Clicks are under their labels' names, `foreground` and
        `background`."""
        raise NotImplementedError("give pre_transforms")

    def inferer(self, data: Any = None) -> Any:  # noqa: ARG002
        """How the network runs over an image: MONAI's SimpleInferer, or for example its SlidingWindowInferer."""
        from monai.inferers import SimpleInferer

        return SimpleInferer()

    def post_transforms(self, data: Any = None) -> Sequence[Any]:
        """Dictionary transforms on the key `pred`, to label values or one channel per structure."""
        raise NotImplementedError("give post_transforms")

    def load(self) -> None:
        """Load the weights, once. Raises ModelBroken naming the file."""
        with self._loading:
            if self._pipeline is not None:
                return
            if self._weights is not None:
                load_weights(self._network, self._weights)
            self._network.eval().to(self.device)
            self._pipeline = TransformPipeline(pre=list(self.pre_transforms()), post=list(self.post_transforms()))

    @property
    def _loaded(self) -> TransformPipeline:
        self.load()
        if self._pipeline is None:
            raise ModelBroken("the model is not loaded")
        return self._pipeline

    def prepare(self, volume: Volume) -> PreparedData:
        """Run the transforms up to those that need prompts. Raises BadRequest for too few channels."""
        if volume.channels < self._channels:
            raise BadRequest(f"this model needs {self._channels} channels; this image has {volume.channels}")
        return self._loaded.prepare(Volume(array=volume.array[: self._channels], affine=volume.affine))

    @torch.no_grad()
    def predict(self, prepared: PreparedData, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:  # noqa: ARG002
        """Run the rest of the transforms and the network."""
        clock, pipeline = StageClock(), self._loaded
        data = self._completed(prepared, prompts)
        clock.stage("pre")
        output = self._output(data[pipeline.image].as_tensor()[None])
        clock.stage("infer")
        labels = pipeline.labels(data, output[0], prepared.source)
        clock.stage("invert")
        return Prediction(labels=labels, seconds=clock.seconds)

    def _completed(self, prepared: PreparedData, prompts: Prompts) -> Data:
        names = dict.fromkeys((*self.info.labels, FOREGROUND, BACKGROUND))
        return self._loaded.complete(prepared, {name: prepared.clicks(prompts.clicks.get(name, ())) for name in names})

    def _output(self, images: Tensor) -> Tensor:
        output: Tensor = self.inferer()(inputs=images.to(self.device, torch.float32), network=self._network)
        return checked_output(output.float())

    # Samples, for `rayapp.active_learning.uncertainty`

    def network_input(self, volume: Volume) -> TransformedImage:
        """The image as the network takes it when nobody has pointed at anything."""
        prepared = self.prepare(volume)
        data = self._completed(prepared, Prompts())
        image = data[self._loaded.image].as_tensor().to(self.device, torch.float32)
        return TransformedImage(pipeline=self._loaded, data=data, source=prepared.source, image=image)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (N, 1 + L, *shape), background first, of images (N, C, *shape) as of `network_input`."""
        answers = torch.cat([self._output(one[None]) for one in images])
        return probabilities(answers, max(self.info.labels.values()), sigmoid=self._loaded.sigmoid)

    def dropout(self, probability: float) -> AbstractContextManager[None]:
        """See `rayapp.inference.network.network.dropout`."""
        self.load()
        return dropout(self._network, probability, name=self.info.description)
