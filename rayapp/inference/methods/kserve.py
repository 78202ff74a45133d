"""Client of the Open Inference Protocol, version 2, over HTTP, which Triton, KServe and others implement.

Inputs are sent by the protocol's binary extension (bytes after the JSON header); outputs may be binary or JSON, as the
server chooses. Calls block. Thread-safe.
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
"""HTTP header with the length of the JSON header in front of binary data."""
TYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
}
"""The protocol's data types."""
_NAMES = {np.dtype(dtype): name for name, dtype in TYPES.items()}
MAX_BODY = 4096 << 20
"""Largest image in a request, and largest response, in bytes."""


class InferenceServer:
    """One model on one server.

    Args:
        url: The server's address, e.g. `http://127.0.0.1:8000`.
        model: The model's name on the server.
        version: The model's version on the server; None leaves the choice to the server.
        timeout: Seconds to wait for the server.
    """

    def __init__(self, url: str, model: str, *, version: str | None = None, timeout: float = 60.0) -> None:
        of_version = "" if version is None else f"/versions/{urllib.parse.quote(version, safe='')}"
        self._base = f"{url.rstrip('/')}/v2/models/{urllib.parse.quote(model, safe='')}{of_version}"
        self._model = model
        self._timeout = timeout

    def metadata(self) -> dict[str, Any]:
        """The model's metadata, with its inputs and outputs.

        Raises:
            ModelBroken: If the server does not answer in time, refuses, or answers with something else.
        """
        body, _ = self._request(urllib.request.Request(self._base))
        return self._json(body)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: Input name to tensor.
            outputs: Names of the outputs to return.

        Returns:
            Output name to tensor.

        Raises:
            ModelBroken: If the server does not answer in time, refuses, or answers with something else.
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
        body, header_length = self._request(request)
        tensors = self._tensors(body, header_length)
        missing = [name for name in outputs if name not in tensors]
        if missing:
            raise self._broken(f"its answer has no output {missing[0]!r}")
        return tensors

    def _request(self, request: urllib.request.Request) -> tuple[bytes, int | None]:
        """Send a request; returns the response's body and the length of its JSON header if binary data follows it."""
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                body: bytes = response.read(MAX_BODY + 1)
                header_length = response.headers.get(HEADER_LENGTH)
        except urllib.error.HTTPError as error:
            raise self._broken(f"it answers with status {error.code}") from error
        except (OSError, ValueError) as error:
            raise self._broken(f"it does not answer ({type(error).__name__})") from error
        if len(body) > MAX_BODY:
            raise self._broken(f"its answer has more than {MAX_BODY} bytes")
        return body, None if header_length is None else int(header_length)

    def _tensors(self, body: bytes, header_length: int | None) -> dict[str, Array]:
        """The output tensors in a response's body."""
        response = self._json(body[:header_length])
        offset, tensors = header_length or 0, {}
        try:
            for output in response["outputs"]:
                dtype, shape = np.dtype(TYPES[output["datatype"]]), [int(n) for n in output["shape"]]
                if "data" in output:
                    array = np.array(output["data"], dtype=dtype)
                else:
                    size = int(output["parameters"]["binary_data_size"])
                    array = np.frombuffer(body[offset : offset + size], dtype=dtype)
                    offset += size
                if array.size != math.prod(shape):
                    raise ValueError("size")
                tensors[str(output["name"])] = array.reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken("its answer does not follow the protocol") from error
        return tensors

    def _json(self, text: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(text)
        except ValueError as error:
            raise self._broken("its answer is not JSON") from error
        if not isinstance(parsed, dict):
            raise self._broken("its answer is not a JSON object")
        return parsed

    def _broken(self, text: str) -> ModelBroken:
        return ModelBroken(f"the model server of {self._model!r}: {text}")
