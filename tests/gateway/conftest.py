"""A gateway on a loopback port, with everything behind it in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
import uvicorn
from fastapi import FastAPI

from deployments.clients import DatastoreClient
from deployments.gateway import build_gateway
from deployments.services import Services
from rayapp.app.app_loader import app_class
from rayapp.config import Settings
from rayapp.datastore.dicomweb import DicomwebDatastore
from rayapp.datastore.local import LocalDatastore
from rayapp.datastore.sessions import SessionStore
from rayapp.errors import Busy
from rayapp.jobs.queue import JobQueue
from rayapp.launch import composed
from rayapp.protocol import Role
from rayapp.serving.messages import HandedOut, InferCall, InferReply
from rayapp.serving.service import InferenceService
from rayapp.users import UserStore
from tests.in_process import InProcess

SHAPE = (13, 11, 7)
AFFINE = np.array([[0.0, -1.6, 1.8, 20.0], [1.5, 0.0, 0.0, -7.0], [0.0, 1.2, 2.4, 4.0], [0, 0, 0, 1]])
MAX_BODY = 1 << 20
SECRET = "Doe^John /srv/patients"

APP = '''
"""Everything brighter than 100 is `bright`."""
import numpy as np, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from rayapp.app.label_app import LabelApp
from rayapp.errors import ModelBroken, NotFound
from rayapp.inference.infer_task import Prediction, TaskInfo

NAMES = ("bright", "bright spots")

class Threshold:
    def __init__(self, version):
        self.version, self.weights = version.version, version.weights
        self.info = TaskInfo(type="deepedit", labels={"background": 0, "bright": 1}, dimension=3,
                             description="threshold", version=version.version)
    def load(self):
        if "at" not in load_file(self.weights):
            raise ModelBroken("the weights hold no tensor `at`")
        self.at = float(load_file(self.weights)["at"])
    def prepare(self, volume):
        return volume
    def predict(self, prepared, prompts, config):
        return Prediction(labels=(prepared.array[0] > self.at).astype(np.uint8))

class App(LabelApp):
    name, description = "threshold", "for tests"
    @classmethod
    def install(cls, settings, models):
        for name in NAMES:
            if models.production(name) is None and not models.versions(name):
                weights = settings.workspace / "at.safetensors"
                weights.parent.mkdir(parents=True, exist_ok=True)
                save_file({"at": torch.tensor([100.0])}, weights)
                models.publish(name, weights, {"made": "for tests"})
    def init_infers(self):
        found = {name: self.models.production(name) for name in NAMES}
        return {name: Threshold(version) for name, version in found.items() if version}
    def make_task(self, version):
        if version.name not in NAMES:
            raise NotFound(f"no model {version.name!r}")
        return Threshold(version)
    def on_save_label(self, image_id, tag):
        if tag == "trouble":
            raise RuntimeError("the hook broke")
        return {"app": "was told"}
'''


@dataclass
class Network:
    """The inference service in this process. Some requests can be made to go wrong."""

    service: InferenceService
    calls: list[InferCall] = field(default_factory=list)
    handed_out: list[HandedOut] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    ready: bool = True

    async def infer(self, call: InferCall) -> InferReply:
        self.calls.append(call)
        if call.params.get("test") == "busy":
            raise Busy("all replicas are busy; try again in a second")
        if call.params.get("test") == "break":
            raise RuntimeError(SECRET)
        if call.params.get("test") == "hang":
            try:
                self.held.set()
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return await self.service.infer(call)

    def stream(self, call: InferCall) -> AsyncGenerator[InferReply, None]:
        self.calls.append(call)
        return self.service.stream(call)

    def prefetch(self, handed_out: HandedOut) -> None:
        self.handed_out.append(handed_out)
        self.service.prefetch(handed_out)


@dataclass
class Served:
    """A gateway that answers, and what is behind it."""

    url: str
    app: FastAPI
    settings: Settings
    store: LocalDatastore
    users: UserStore
    sessions: SessionStore
    network: Network
    jobs: JobQueue
    token: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def send(self, method: str, path: str, **given: Any) -> requests.Response:
        if self.token:
            given["headers"] = {"Authorization": f"Bearer {self.token}", **given.get("headers", {})}
        return requests.request(method, self.url + path, timeout=20, **given)

    def get(self, path: str, **given: Any) -> requests.Response:
        return self.send("GET", path, **given)

    def put(self, path: str, **given: Any) -> requests.Response:
        return self.send("PUT", path, **given)

    def post(self, path: str, **given: Any) -> requests.Response:
        return self.send("POST", path, **given)

    def infer(self, query: str, params: Any = None, **given: Any) -> requests.Response:
        text = params if isinstance(params, str) else json.dumps(params or {})
        return self.post(f"/infer/bright?{query}", data={"params": text}, **given)

    def save(self, image: str, file: Path, tag: str = "", **params: Any) -> requests.Response:
        query = f"?image={image}" + (f"&tag={tag}" if tag else "")
        with file.open("rb") as body:
            return self.put(f"/datastore/label{query}", files={"label": body}, data={"params": json.dumps(params)})

    def staged(self) -> list[str]:
        """Files that uploads left behind; the list for MONAI Label, `.json`, is being written there at times."""
        folder = self.settings.studies / ".rayapp" / "staging"
        return [path.name for path in folder.iterdir() if path.suffix != ".json"]


def voxels() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 200, SHAPE, dtype=np.int16)


def write_image(path: Path, array: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(voxels() if array is None else array, affine).to_filename(path)
    return path


def write_label(path: Path, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE) -> Path:
    label = np.zeros(shape, np.uint8)
    label[2, 3, 1] = label[-1, -1, -1] = 1
    return write_image(path, label, affine)


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts gateways, which stop after the module's tests."""
    with contextlib.ExitStack() as running:

        def start(*, archived: bool = False, **options: Any) -> Served:
            """`archived`: the images are those of the archive that `dicomweb` names."""
            folder = tmp_path_factory.mktemp("gateway")
            for name in ("ct_a", "ct_b", "ct_ü"):
                write_image(folder / "studies" / f"{name}.nii.gz")
            (folder / "app").mkdir()
            (folder / "app" / "main.py").write_text(APP)
            settings = Settings(
                studies=folder / "studies",
                workspace=folder / "workspace",
                **{
                    "ohif": folder / "ohif",
                    "app": str(folder / "app"),
                    "max_body": MAX_BODY,
                    "max_volume": MAX_BODY,
                    **options,
                },
            )
            parts = InProcess(partial(DicomwebDatastore, watch=False)) if archived else InProcess()
            served = running.enter_context(_gateway(settings, parts))
            requests.get(served.url + "/", timeout=60).raise_for_status()
            return served

        yield start


@contextlib.contextmanager
def _gateway(settings: Settings, parts: InProcess) -> Iterator[Served]:
    with composed(settings, parts) as backend:
        app = app_class(settings).of(settings)
        app.load_all()
        service = InferenceService(settings=settings, app=app, images=DatastoreClient(backend.datastore))
        with contextlib.closing(service):
            network = Network(service)
            gateway = build_gateway(
                Services.of(
                    settings,
                    datastore=backend.datastore,
                    models=backend.models,
                    jobs=backend.jobs,
                    inference=network,
                )
            )
            with _listening(gateway) as url:
                yield Served(
                    url=url,
                    app=gateway,
                    settings=settings,
                    store=backend.datastore,
                    users=UserStore.of(settings.workspace),
                    sessions=SessionStore.of(settings),
                    network=network,
                    jobs=backend.jobs,
                )


@contextlib.contextmanager
def _listening(app: FastAPI) -> Iterator[str]:
    """The app on a loopback port; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def gateway(serve: Serve) -> Served:
    """Without keys, as on one's own machine."""
    return serve()


@pytest.fixture(scope="module")
def keyed(serve: Serve) -> Served:
    """With keys."""
    return serve(auth="token")


@pytest.fixture(scope="module")
def keys(keyed: Served) -> dict[Role, str]:
    """A key of each role, of users named as the role."""
    return {role: keyed.users.add(f"the {role.value}", role) for role in Role}
