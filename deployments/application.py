"""The server's application on Ray Serve: deployed, deployed again as nodes come and go, and deleted.

On a cluster that others use, Serve may run already, with applications of theirs. Its host and port then stay as they
are, and only the server's own application is ever changed or ended.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatusOverview

from actors import name_of
from actors.placement import nodes, shares_now
from deployments.inference import inference_deployment
from deployments.ingress import gateway_deployment
from rayapp.config import Settings
from rayapp.errors import RayappError
from rayapp.planner.shares import Resources, outgrown

logger = logging.getLogger(__name__)

GONE_S = 60.0
"""Seconds without any GPU after which replicas that ran on GPUs are placed without: a node that is replaced takes less
or is being started by then."""
ROOT = "/"
"""Route prefix of the application."""


def settled(settings: Settings) -> Settings:
    """The settings with the host and the port of the Serve instance of the cluster, if one runs there already.

    Raises:
        RayappError: another application answers at the root of that instance.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return settings
    others = {
        name: details["route_prefix"]
        for name, details in client.get_serve_details()["applications"].items()
        if name != name_of("rayapp", settings)
    }
    if ROOT in others.values():
        taken = next(name for name, prefix in others.items() if prefix == ROOT)
        raise RayappError(
            f"the application {taken!r} answers at {ROOT} of this cluster's Ray Serve, which has one address for all: "
            f"stop its server, delete it (serve.delete({taken!r}) of Ray Serve), or use another cluster"
        )
    theirs = {"host": client.http_config.host, "port": client.http_config.port}
    differing = {name: value for name, value in theirs.items() if value != getattr(settings, name)}
    if differing:
        said = " and ".join(f"{name} {value}" for name, value in differing.items())
        logger.warning("Ray Serve runs on this cluster already, with %s: these count, not the server's settings", said)
    return settings.model_copy(update=differing)


class Application:
    """One server's gateway and replicas.

    Args:
        settings: of the server.
        datastore: the actor or its handle, as the deployments take it.
        models: likewise.
        jobs: likewise.
    """

    def __init__(self, settings: Settings, *, datastore: Any, models: Any, jobs: Any) -> None:
        self._settings = settings
        self._services = (datastore, models, jobs)
        self._replica: Resources = {}
        self._without_gpus: float | None = None
        self.name = name_of("rayapp", settings)

    def deploy(self) -> None:
        """Start Ray Serve, if it does not run, and the application; until its replicas run, it answers 404."""
        # Only HAProxy is to be reached from elsewhere, and is told so by itself (`actors.haproxy`).
        behind = self._settings.auth != "none" and self._settings.ray_address is None
        serve.start(
            http_options={
                "host": "127.0.0.1" if behind else self._settings.host,
                "port": self._settings.port,
                "request_timeout_s": None,
            },
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        self._run(shares_now(self._settings).replica)

    def follow(self, *, serving: bool) -> bool:
        """Deploy again with what suits the nodes that are there now; True if there was reason to.

        Args:
            serving: replicas run, which end when it is deployed again, one after the other: only for a good reason.
        """
        wanted = shares_now(self._settings).replica
        if wanted == self._replica:
            self._without_gpus = None
            return False
        if serving and not outgrown(self._replica, wanted, list(nodes(self._settings).values())):
            return False
        if self._replica.get("GPU") and not wanted.get("GPU"):
            self._without_gpus = self._without_gpus or time.monotonic()
            if time.monotonic() < self._without_gpus + GONE_S:
                return False
        logger.info("the nodes have changed: replicas ask for %s, not %s", dict(wanted), dict(self._replica))
        self._without_gpus = None
        self._run(wanted)
        return True

    def _run(self, replica: Resources) -> None:
        datastore, models, jobs = self._services
        inference = inference_deployment(self._settings, replica).bind(self._settings, datastore, models)
        gateway = gateway_deployment(self._settings, datastore, models, jobs).bind(inference)
        target = serve.RunTarget(gateway, name=self.name, route_prefix=ROOT)
        serve.run_many([target], wait_for_applications_running=False)
        self._replica = replica

    def status(self) -> ApplicationStatusOverview:
        """As Serve's controller sees it."""
        return serve.status().applications[self.name]

    def delete(self) -> None:
        """End it; on a cluster that others use, their applications go on."""
        if self._settings.ray_address is None:
            serve.shutdown()
        else:
            with contextlib.suppress(TimeoutError):  # Serve goes on with it
                serve.delete(self.name)
