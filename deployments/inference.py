"""Inference replicas: a thin shell of Ray Serve around `rayapp.serving.service.InferenceService`.

Requests carry the image as session id, and consistent hashing routes all requests for an image to the replica that has
it decoded and prepared. A replica that dies loses only caches: the caller retries, and the next replica on the ring
rebuilds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from actors.environment import runtime_env
from actors.placement import most_replicas, replicas_here
from actors.ray_errors import unwrapped_errors
from deployments.clients import DatastoreClient
from deployments.connections import stay_inside
from rayapp.app import app_traceback
from rayapp.app.app_loader import app_class
from rayapp.config import Settings
from rayapp.errors import AppBroken, Busy, RayappError
from rayapp.planner.shares import Resources
from rayapp.runtime import logs
from rayapp.runtime.request_id import REQUEST
from rayapp.serving.messages import HandedOut, InferCall, InferReply

NAME = "inference"
ONGOING = 8
"""Concurrent requests per replica: one in the network; the others decode, prepare or encode beside it."""
TARGET = 1
"""Requests under way per replica, on average, above which another replica is started: a click never queues for long."""
LOOK_BACK_S = 8.0
"""Seconds over which that average is taken."""
ENCODING_S = 30.0
"""Seconds that a replica which is to end, as when the load is gone, still has for an answer beside the model's own."""
ATTEMPTS = 4
DIED = "the inference replica died, and so did those that took over; retry in 1 s"
TELLING = 32
"""Prefetches that one gateway has under way; further ones are dropped."""

logger = logging.getLogger("rayapp.gateway")


class InferenceReplica:
    """A process that serves the app's models."""

    def __init__(self, settings: Settings, datastore: ray.actor.ActorHandle, models: ray.actor.ActorHandle) -> None:
        # Here and not above: gateways import this module too, and need no torch.
        from rayapp.planner.machine import hardware
        from rayapp.planner.replicas import plan
        from rayapp.serving.service import InferenceService

        stay_inside()
        logs.configure(settings)
        ray.get(models.describe.remote())  # by then what the app ships is published
        app = app_class(settings).of(settings)
        app.load_all()
        self._app_dir = app.app_dir
        share = plan(hardware(), sharing=replicas_here(settings))
        self._service = InferenceService(settings=settings, app=app, images=DatastoreClient(datastore), share=share)

    async def infer(self, call: InferCall) -> InferReply:
        """Answer one call. An error in the app's own code becomes AppBroken, with its place and without its text."""
        REQUEST.set(call.request)
        try:
            return await self._service.infer(call)
        except RayappError:
            raise
        except Exception as error:
            at = app_traceback.location(error, self._app_dir)
            if not at:
                raise
            logger.error("model %s failed at %s with %s", call.model, at, type(error).__name__)
            raise AppBroken(f"model {call.model!r} failed with {type(error).__name__} at {at}") from None

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if self._service.hung:
            raise RuntimeError("a model did not return in time")

    async def stream(self, call: InferCall) -> AsyncGenerator[InferReply, None]:
        """Answer a turn in stages."""
        REQUEST.set(call.request)
        async with aclosing(self._service.stream(call)) as replies:
            async for reply in replies:
                yield reply

    async def prefetch(self, handed_out: HandedOut) -> None:
        """Queue the image for prefetching; returns at once."""
        self._service.prefetch(handed_out)


def inference_deployment(settings: Settings, replica: Resources) -> serve.Deployment:
    """Build the deployment: replicas, autoscaling, router and bounded queues.

    Args:
        settings: of the server.
        replica: what each asks of its node.
    """
    low, high = settings.replicas[0], most_replicas(settings, replica)
    return serve.deployment(
        InferenceReplica,
        name=NAME,
        max_ongoing_requests=ONGOING,
        max_queued_requests=settings.max_queued,
        graceful_shutdown_timeout_s=settings.max_answer + ENCODING_S,
        health_check_period_s=2,
        health_check_timeout_s=30,
        ray_actor_options={**asked(replica), "runtime_env": runtime_env(settings)},
        autoscaling_config=AutoscalingConfig(
            min_replicas=low,
            max_replicas=high,
            initial_replicas=low,
            target_ongoing_requests=TARGET,
            look_back_period_s=LOOK_BACK_S,
            metrics_interval_s=LOOK_BACK_S / 4,
            upscale_delay_s=3,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
        ),
    )


def asked(replica: Resources) -> dict[str, float]:
    """The resources that a replica asks of its node, as options of its actor."""
    return {"num_cpus": replica["CPU"], "num_gpus": replica.get("GPU", 0.0)}


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Raise errors of replicas as themselves, and Busy when all queues are full."""
    try:
        with unwrapped_errors():
            yield
    except BackPressureError:
        raise Busy("all inference replicas are busy; retry in 1 s") from None


class RoutedInference:
    """The gateway's client: sends a call to the replica of its image, and to another one if that dies."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle.options()  # which from now on hears of its replicas
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """True once a replica has started."""
        return bool(self._handle.running_replicas_populated())

    async def infer(self, call: InferCall) -> InferReply:
        """Answer one call.

        Raises:
            Busy: all queues are full, or replicas keep dying.
            RayappError: as the replica raised it.
        """
        handle = self._handle.options(session_id=call.key)
        for attempt in range(ATTEMPTS):
            with _errors():
                try:
                    reply: InferReply = await handle.infer.remote(call)
                    return reply
                except RayActorError:
                    # An inference changes nothing but its click log entry, so it may run again elsewhere.
                    await asyncio.sleep(0.05 * attempt)
        raise Busy(DIED)

    async def stream(self, call: InferCall) -> AsyncGenerator[InferReply, None]:
        """As `infer`, for a turn in stages. If the replica dies after its first answer, another one begins anew, with
        a whole mask: what the client has by then is a mask that no other replica knows.
        """
        handle = self._handle.options(session_id=call.key, stream=True)
        begun = call.turn
        for attempt in range(ATTEMPTS):
            with _errors():
                try:
                    async for reply in handle.stream.remote(call):
                        if call.turn is not None:
                            begun = replace(call.turn, onto="")
                        yield reply
                    return
                except RayActorError:
                    call = replace(call, turn=begun)
                    await asyncio.sleep(0.05 * attempt)
        raise Busy(DIED)

    def prefetch(self, handed_out: HandedOut) -> None:
        """Queue the image for prefetching in its replica, without waiting for an answer."""
        if len(self._telling) < TELLING:
            task = asyncio.get_running_loop().create_task(self._tell(handed_out))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, handed_out: HandedOut) -> None:
        try:
            await self._handle.options(session_id=handed_out.key).prefetch.remote(handed_out)
        except (RayError, BackPressureError) as error:
            logger.info("an image is not prepared ahead: %s", type(error).__name__)
