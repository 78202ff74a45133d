"""A small server of the Open Inference Protocol: labels what is bright, and 3 voxels around clicks, on its grid."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from aiohttp import web

from rayapp.inference.methods.kserve import HEADER_LENGTH, TYPES


class ModelServer:
    """`answers` is binary, json, logits, or something wrong: status, shape, short, nothing."""

    def __init__(self) -> None:
        self.answers = "binary"
        self.seen: list[dict[str, np.ndarray]] = []

    async def metadata(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != "promptable":
            return web.json_response({"error": "unknown model"}, status=404)
        tensors = {"inputs": ["image", "points", "point_labels"], "outputs": ["labels"]}
        return web.json_response({side: [{"name": name} for name in names] for side, names in tensors.items()})

    async def infer(self, request: web.Request) -> web.Response:
        body, length = await request.read(), int(request.headers[HEADER_LENGTH])
        header, at, inputs = json.loads(body[:length]), length, {}
        for tensor in header["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            array = np.frombuffer(body[at : at + size], TYPES[tensor["datatype"]])
            inputs[tensor["name"]] = array.reshape(tensor["shape"])
            at += size
        assert at == len(body)
        self.seen.append(inputs)
        return self._reply(_labels(inputs))

    def _reply(self, labels: np.ndarray) -> web.Response:
        if self.answers == "status":
            return web.json_response({"error": "Doe^John"}, status=500)
        if self.answers == "nothing":
            return web.Response(body=b"hello")
        if self.answers == "shape":
            labels = labels[:, 1:]
        if self.answers == "logits":
            labels = np.concatenate([1.0 - labels, labels + 0.0]).astype(np.float32)[None]
        kind = {"u": "UINT8", "f": "FP32"}[labels.dtype.kind]
        output = {"name": "labels", "shape": labels.shape, "datatype": kind}
        if self.answers == "json":
            return web.json_response({"outputs": [{**output, "data": labels.ravel().tolist()}]})
        output["parameters"] = {"binary_data_size": labels.nbytes}
        header = json.dumps({"outputs": [output]}).encode()
        body = header + labels.tobytes()[: 5 if self.answers == "short" else None]
        return web.Response(body=body, headers={HEADER_LENGTH: str(len(header))})


def _labels(inputs: dict[str, np.ndarray]) -> np.ndarray:
    image = inputs["image"][0, 0]
    labels = (image > 50).astype(np.uint8)
    points = inputs.get("points", np.zeros((1, 0, 3), np.int32))[0]
    for point, value in zip(points, inputs.get("point_labels", np.zeros((1, 0)))[0], strict=True):
        labels[tuple(slice(max(0, at - 1), at + 2) for at in point)] = value
    return labels[None]


@contextmanager
def serving(server: ModelServer) -> Iterator[str]:
    """Its address, for as long as it runs."""
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=1 << 28)
    app.router.add_get("/v2/models/{model}", server.metadata)
    app.router.add_post("/v2/models/{model}/infer", server.infer)
    runner = web.AppRunner(app)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
