"""BasicInferTask: an app's own network between MONAI transforms, in the style of MONAI Label apps.

Subclass it and implement `pre_transforms`, `post_transforms` and, if need be, `inferer`. Transforms that read or write
files are skipped, since the server has the image and sends the mask; and the mask is restored to exactly the image's
grid, so that no transform has to do that. See `rayapp.inference.network.monai_transforms`.
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
    """A network between MONAI transforms.

    Args:
        network: Maps (1, C, …) to (1, classes, …).
        weights: The safetensors file; None leaves the network's weights as they are.
        labels: Structure name to value.
        description: One sentence for the annotator.
        type: The kind of model that clients take it for: segmentation, deepedit or deepgrow.
        version: The model version's name.
        channels: Number of image channels that the network needs.
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
        """Dictionary transforms before the network, on the key `image`.

        Clicks are under the names of their labels, `foreground` and `background`, as lists of voxels.
        """
        raise NotImplementedError("implement pre_transforms")

    def inferer(self, data: Any = None) -> Any:  # noqa: ARG002
        """The inferer that runs the network over an image: by default MONAI's SimpleInferer."""
        from monai.inferers import SimpleInferer

        return SimpleInferer()

    def post_transforms(self, data: Any = None) -> Sequence[Any]:
        """Dictionary transforms after the network, on the key `pred`, to label values or one channel per structure."""
        raise NotImplementedError("implement post_transforms")

    def load(self) -> None:
        """Load the weights; later calls do nothing.

        Raises:
            ModelBroken: If they do not fit the network; names the file.
        """
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
        """Run the transforms that need no prompts.

        Raises:
            BadRequest: If the image has fewer channels than the network needs.
        """
        if volume.channels < self._channels:
            raise BadRequest(f"this model needs {self._channels} channels; this image has {volume.channels}")
        return self._loaded.prepare(Volume(array=volume.array[: self._channels], affine=volume.affine))

    @torch.no_grad()
    def predict(self, prepared: PreparedData, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:  # noqa: ARG002
        """Run the remaining transforms and the network.

        Raises:
            ModelBroken: If the network answers with NaN, or the transforms make no label map.
        """
        clock, pipeline = StageClock(), self._loaded
        data = self._completed(prepared, prompts)
        clock.stage("pre")
        output = self._output(data[pipeline.image].as_tensor()[None])
        clock.stage("infer")
        labels = pipeline.labels(data, output[0], prepared.source)
        clock.stage("invert")
        return Prediction(labels=labels, seconds=clock.seconds)

    def _completed(self, prepared: PreparedData, prompts: Prompts) -> Data:
        """The transforms' dictionary before the network."""
        names = dict.fromkeys((*self.info.labels, FOREGROUND, BACKGROUND))
        return self._loaded.complete(prepared, {name: prepared.clicks(prompts.clicks.get(name, ())) for name in names})

    def _output(self, images: Tensor) -> Tensor:
        """The network's output, float32, for images (N, C, …)."""
        output: Tensor = self.inferer()(inputs=images.to(self.device, torch.float32), network=self._network)
        return checked_output(output.float())

    # Samples, for `rayapp.active_learning.uncertainty`

    def network_input(self, volume: Volume) -> TransformedImage:
        """The network's input for an image without prompts."""
        prepared = self.prepare(volume)
        data = self._completed(prepared, Prompts())
        image = data[self._loaded.image].as_tensor().to(self.device, torch.float32)
        return TransformedImage(pipeline=self._loaded, data=data, source=prepared.source, image=image)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (N, 1 + L, *shape), background first, of images (N, C, *shape) from `network_input`."""
        outputs = torch.cat([self._output(image[None]) for image in images])
        return probabilities(outputs, max(self.info.labels.values()), sigmoid=self._loaded.sigmoid)

    def dropout(self, probability: float) -> AbstractContextManager[None]:
        """Monte Carlo dropout; see `rayapp.inference.network.network.dropout`."""
        self.load()
        return dropout(self._network, probability, name=self.info.description)
