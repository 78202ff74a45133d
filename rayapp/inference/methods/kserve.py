"""A client of the Open Inference Protocol, version 2, over HTTP: what Triton, KServe and others speak.

Tensors travel as the protocol's binary extension (bytes behind the JSON header), answers as binary or as JSON,
whichever the server chooses. Calls block; safe from any thread.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayapp.errors import ModelBroken

Array = npt.NDArray[Any]

HEADER_LENGTH = "Inference-Header-Content-Length"
TYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
}
_NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}
MAX_ANSWER = 4096 << 20
"""Bytes that one answer may have."""


class InferenceServer:
    """One model of one server, for example at `http://127.0.0.1:8000`."""

    def __init__(self, url: str, model: str, *, version: str | None = None, timeout: float = 60.0) -> None:
        chosen = "" if version is None else f"/versions/{urllib.parse.quote(version, safe='')}"
        self._base = f"{url.rstrip('/')}/v2/models/{urllib.parse.quote(model, safe='')}{chosen}"
        self._model = model
        self._timeout = timeout

    def metadata(self) -> dict[str, Any]:
        """What the server says of the model's inputs and outputs. Raises ModelBroken."""
        body, _ = self._ask(urllib.request.Request(self._base))
        return self._json(body)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """The outputs of those names.

        Raises:
            ModelBroken: if the server does not answer in time, refuses, or answers with something else.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": array.shape,
                        "datatype": _NAMES[array.dtype],
                        "parameters": {"binary_data_size": array.nbytes},
                    }
                    for name, array in arrays.items()
                ],
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
            }
        ).encode()
        request = urllib.request.Request(
            f"{self._base}/infer",
            data=header + b"".join(array.tobytes() for array in arrays.values()),
            headers={"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))},
        )
        body, length = self._ask(request)
        found = self._outputs(body, length)
        missing = [name for name in outputs if name not in found]
        if missing:
            raise self._broken(f"its answer has no output {missing[0]!r}")
        return found

    def _ask(self, request: urllib.request.Request) -> tuple[bytes, int | None]:
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                body: bytes = answer.read(MAX_ANSWER + 1)
                length = answer.headers.get(HEADER_LENGTH)
        except urllib.error.HTTPError as error:
            raise self._broken(f"it answers with status {error.code}") from error
        except (OSError, ValueError) as error:
            raise self._broken(f"it does not answer ({type(error).__name__})") from error
        if len(body) > MAX_ANSWER:
            raise self._broken(f"its answer has more than {MAX_ANSWER} bytes")
        return body, None if length is None else int(length)

    def _outputs(self, body: bytes, length: int | None) -> dict[str, Array]:
        said = self._json(body[:length])
        at, found = length or 0, {}
        try:
            for output in said["outputs"]:
                kind, shape = np.dtype(TYPES[output["datatype"]]), [int(n) for n in output["shape"]]
                if "data" in output:
                    array = np.array(output["data"], dtype=kind)
                else:
                    size = int(output["parameters"]["binary_data_size"])
                    array = np.frombuffer(body[at : at + size], dtype=kind)
                    at += size
                if array.size != math.prod(shape):
                    raise ValueError("size")
                found[str(output["name"])] = array.reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken("its answer is not one of the protocol's") from error
        return found

    def _json(self, text: bytes) -> dict[str, Any]:
        try:
            said = json.loads(text)
        except ValueError as error:
            raise self._broken("its answer is no JSON") from error
        if not isinstance(said, dict):
            raise self._broken("its answer is no JSON object")
        return said

    def _broken(self, text: str) -> ModelBroken:
        return ModelBroken(f"the model server of {self._model!r}: {text}")
