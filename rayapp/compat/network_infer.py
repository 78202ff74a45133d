"""`BasicInferTask` of MONAI Label's apps: transforms and a network, asked for anew with each request's data."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor, decollate_batch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms.utils import allow_missing_keys_mode

from rayapp.compat.app_functions import device_list, name_to_device, strtobool
from rayapp.compat.peer_tasks import InferTask, InferType
from rayapp.compat.result_writer import Writer
from rayapp.compat.transform_runs import run_transforms, transforms_of
from rayapp.errors import ModelBroken
from rayapp.inference.network.cancellation import stepping
from rayapp.inference.network.monai_transforms import checked_output
from rayapp.models.weights import read_weights


class CallBackTypes(StrEnum):
    """Stages after which a pipeline may look at the data."""

    PRE_TRANSFORMS = "PRE_TRANSFORMS"
    INFERER = "INFERER"
    INVERT_TRANSFORMS = "INVERT_TRANSFORMS"
    POST_TRANSFORMS = "POST_TRANSFORMS"
    WRITER = "WRITER"


class BasicInferTask(InferTask):
    """A network between transforms. See MONAI Label for its hooks; all of them get the request's `data`.

    Args:
        path: Files of the weights; the last one that exists is used.
        network: The network; None for a TorchScript file.
        type, labels, dimension, description, config: See `InferTask`.
        model_state_dict: Key of the weights in the file.
        input_key, output_label_key, output_json_key: Keys of `data`.
        load_strict: Refuse weights that lack a parameter or have another one.
        roi_size: Window of the network.
        preload: Not used: weights are loaded before the first request.
        train_mode: Keep dropout active.
        skip_writer: Return `data` instead of a file.
    """

    def __init__(
        self,
        path: str | Sequence[str] | None,
        network: Any = None,
        type: str | InferType = InferType.SEGMENTATION,
        labels: Any = None,
        dimension: int = 3,
        description: str = "",
        model_state_dict: str = "model",
        input_key: str = "image",
        output_label_key: str = "pred",
        output_json_key: str = "result",
        config: Mapping[str, Any] | None = None,
        load_strict: bool = True,
        roi_size: Any = None,
        preload: bool = False,  # noqa: ARG002
        train_mode: bool = False,
        skip_writer: bool = False,
    ) -> None:
        super().__init__(type, labels, dimension, description)
        self._config = {"device": device_list(), **(config or {})}
        self.path = [path] if isinstance(path, str) else list(path or ())
        self.network = network
        self.model_state_dict = model_state_dict
        self.input_key, self.output_label_key, self.output_json_key = input_key, output_label_key, output_json_key
        self.load_strict = load_strict
        self.roi_size = roi_size
        self.train_mode = train_mode
        self.skip_writer = skip_writer
        self._networks: dict[str, Any] = {}
        self._loading = threading.Lock()

    def pre_transforms(self, data: Any = None) -> Any:
        """Hook: transforms before the network."""
        raise NotImplementedError("implement pre_transforms")

    def inverse_transforms(self, data: Any = None) -> Any:  # noqa: ARG002
        """Hook: transforms to invert on the output: None for none, [] for all that can be, or some by name."""
        return None

    def post_transforms(self, data: Any = None) -> Any:
        """Hook: transforms after the network."""
        raise NotImplementedError("implement post_transforms")

    def inferer(self, data: Any = None) -> Any:
        """Hook: runs the network over an image: by default in windows if the image is larger than `roi_size`."""
        roi = (data or {}).get("roi_size", self.roi_size)
        image = (data or {}).get(self.input_key)
        if not roi or image is None or all(a <= b for a, b in zip(image.shape[-len(roi) :], roi, strict=True)):
            return SimpleInferer()
        return SlidingWindowInferer(
            roi_size=roi, sw_batch_size=int(data.get("sw_batch_size", 1)), overlap=float(data.get("sw_overlap", 0.25))
        )

    def get_path(self, validate: bool = True) -> str | None:
        """The file of the weights: the last one that exists."""
        return next((path for path in reversed(self.path) if path and (not validate or Path(path).exists())), None)

    def is_valid(self) -> bool:
        """True if there is a network, or a file with one."""
        return bool(self.network is not None or str(self.type) == "scribbles" or self.get_path())

    def load(self) -> None:
        """Load the weights.

        Raises:
            ModelBroken: If none of the files exists, or the weights do not fit.
        """
        if self.network is not None or self.path:
            self._get_network(name_to_device("cuda"), None)

    def __call__(
        self, request: dict[str, Any], callbacks: Mapping[CallBackTypes, Callable[..., Any]] | None = None
    ) -> tuple[str | None, dict[str, Any]]:
        """Answer one request.

        Args:
            request: Options, clicks by label, and the image's path; or an image of another stage of a pipeline.
            callbacks: Called with the data after a stage; each returns it.
        """
        data = {**copy.deepcopy(self._config), **request}
        device = data["device"] = name_to_device(data.get("device", "cuda"))
        if isinstance(data.get(self.input_key), str):
            data = {**copy.deepcopy(data), "image_path": data[self.input_key]}
        seconds, began = {}, time.perf_counter()

        def after(stage: CallBackTypes, name: str, data: dict[str, Any]) -> dict[str, Any]:
            nonlocal began
            callback = (callbacks or {}).get(stage)
            data = data if callback is None else callback(data)
            now = time.perf_counter()
            seconds[name], began = now - began, now
            return data

        pre = self.pre_transforms(data)
        data = after(CallBackTypes.PRE_TRANSFORMS, "pre", self.run_pre_transforms(data, pre))
        data = after(CallBackTypes.INFERER, "infer", self.run_inferer(data, device=device))
        inverted = self.run_invert_transforms(data, pre, self.inverse_transforms(data))
        data = after(CallBackTypes.INVERT_TRANSFORMS, "invert", inverted)
        posted = self.run_post_transforms(data, self.post_transforms(data))
        data = after(CallBackTypes.POST_TRANSFORMS, "post", posted)
        if self.skip_writer or strtobool(data.get("skip_writer")):
            return None, dict(data)
        file, result = self.writer(data)
        after(CallBackTypes.WRITER, "write", data)
        result["label_names"] = self.labels
        result["latencies"] = seconds
        result["centroids"] = {
            name: [str(value) for value in values]
            for centroid in data.get("centroids") or ()
            for name, values in centroid.items()
        }
        return file, result

    def run_pre_transforms(self, data: dict[str, Any], transforms: Any) -> dict[str, Any]:
        """Run the transforms before the network."""
        return run_transforms(data, transforms, log_prefix="PRE")

    def run_inferer(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda") -> dict[str, Any]:
        """Run the network, and put its output under `output_label_key`."""
        network = self._get_network(name_to_device(device), data)
        if network is None:
            return run_transforms(data, self.inferer(data), log_prefix="INF", log_name="Inferer")
        image = data[self.input_key]
        inputs = image if torch.is_tensor(image) else torch.from_numpy(image)
        inputs = (inputs[None] if convert_to_batch else inputs).to(name_to_device(device))
        with torch.no_grad():
            outputs = self.inferer(data)(inputs, stepping(network))
        if convert_to_batch:
            outputs = decollate_batch(outputs)[0] if isinstance(outputs, dict) else outputs[0]
        if torch.is_tensor(outputs):
            checked_output(outputs)
        data[self.output_label_key] = outputs
        return data

    def run_invert_transforms(self, data: dict[str, Any], pre_transforms: Any, names: Any) -> dict[str, Any]:
        """Invert transforms on the output; see `inverse_transforms`."""
        pred = data.get(self.output_label_key)
        if names is None or not torch.is_tensor(pred):
            return data
        wanted = {name if isinstance(name, str) else name.__name__ for name in names}
        image = data[self.input_key]
        if isinstance(image, MetaTensor):
            pred = MetaTensor(pred.as_tensor() if isinstance(pred, MetaTensor) else pred, meta=dict(image.meta))
            pred.applied_operations = copy.deepcopy(image.applied_operations)
        inverted: dict[str, Any] = {self.input_key: pred}
        for transform in reversed(transforms_of(pre_transforms)):
            if hasattr(transform, "inverse") and (not wanted or type(transform).__name__ in wanted):
                with allow_missing_keys_mode(transform):
                    inverted = transform.inverse(inverted)
        data[self.output_label_key] = inverted[self.input_key]
        return data

    def run_post_transforms(self, data: dict[str, Any], transforms: Any) -> dict[str, Any]:
        """Run the transforms after the network."""
        return run_transforms(data, transforms, log_prefix="POST")

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """Hook: write the mask; the file's path and the reply's JSON."""
        return Writer(label=self.output_label_key, json=self.output_json_key, ref_image=self.input_key)(data)

    def _get_network(self, device: str, data: Any) -> Any:  # noqa: ARG002
        """The network with its weights, loaded once for each file and device; None for a task without one."""
        path = self.get_path()
        if path is None and self.network is None and not self.path:
            return None
        if path is None and self.path:
            names = ", ".join(Path(each).name for each in self.path)
            raise ModelBroken(f"no weights yet: {names} is not in {Path(self.path[0]).parent}; train the model first")
        key = f"{device} {path} {Path(path).stat().st_mtime_ns if path else 0}"
        with self._loading:
            if key not in self._networks:
                self._networks.clear()
                self._networks[key] = self._loaded(path, device)
            return self._networks[key]

    def _loaded(self, path: str | None, device: str) -> Any:
        network = copy.deepcopy(self.network) if self.network is not None else None
        try:
            if network is None:
                network = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
            elif path is not None:
                weights = read_weights(Path(path), key=self.model_state_dict)
                network.load_state_dict(weights, strict=self.load_strict)
        except (RuntimeError, OSError, ValueError) as error:
            raise ModelBroken(f"{Path(path or '').name} does not fit the network: {str(error)[:300]}") from error
        network.to(device)
        return network.train() if self.train_mode else network.eval()

    def clear(self) -> None:
        """Forget loaded networks."""
        self._networks.clear()

    def __copy__(self) -> BasicInferTask:
        """Another task over the same network and hooks, with networks and weights of its own."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.path, made._networks, made._loading = list(self.path), {}, threading.Lock()
        return made
