"""Metrics for Prometheus: requests, errors, saves, answers of models by stage, caches, queues, jobs, images, labels."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.services import Inference
from rayapp.datastore.job_record import Job
from rayapp.protocol import Route
from rayapp.runtime.request_id import REQUEST
from rayapp.serving.messages import HandedOut, InferCall, InferReply

NONE = "none"
"""Label value of requests that match no route; one for each path would be unbounded."""
_SAVES: dict[tuple[str, str], str] = {
    ("PUT", Route.LABEL): "label",
    ("POST", Route.RESTORE_LABEL): "label restored",
    ("DELETE", Route.LABEL): "label removed",
    ("PUT", Route.LABEL_INFO): "info",
    ("PUT", Route.UPDATE_LABEL_INFO): "info",
    ("PUT", Route.IMAGE_INFO): "info",
    ("PUT", Route.DATASTORE): "image",
    ("PUT", Route.IMAGE): "image",
    ("DELETE", Route.DATASTORE): "image removed",
    ("DELETE", Route.IMAGE): "image removed",
    ("POST", Route.VIEWER_DRAFT): "draft",
    ("PUT", Route.MODEL): "model",
}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0)


class Metrics:
    """The gateway's metrics. Labels are routes, models and kinds of job, never images, paths or people."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._made(Counter, "requests", "Requests answered.", "method", "route", "status")
        self._seconds = self._made(
            Histogram, "request_seconds", "Seconds until an answer has been sent.", "route", buckets=_SECONDS
        )
        self._stages = self._made(
            Histogram, "infer_seconds", "Seconds of an inference, by stage.", "model", "stage", buckets=_SECONDS
        )
        self._caches = self._made(Counter, "cache_requests", "Requests of a replica's cache.", "cache", "result")
        self._waiting = self._made(Gauge, "infer_waiting", "Inferences that are waited for.", "model")
        self._checks = self._made(Gauge, "checks_waiting", "Uploads that are being checked or wait for it.")
        self._saves = self._made(Counter, "saves", "What was saved or removed.", "kind")
        self._errors = self._made(Counter, "errors", "Requests that an error answered.", "kind")
        self._sessions = self._made(Gauge, "sessions", "Images that clients sent for a while.")
        self._jobs = self._made(Gauge, "jobs", "Jobs.", "kind", "state")
        self._images = self._made(Gauge, "images", "Images.")
        self._labels = self._made(Gauge, "labels", "Labels.", "tag")
        self._models = self._made(Gauge, "model_version_info", "The version that a model serves.", "model", "version")

    def _made(self, kind: Any, name: str, text: str, *labels: str, **given: Any) -> Any:
        return kind(f"rayapp_{name}", text, labels, registry=self._registry, **given)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)
        if status < 400 and (kind := _SAVES.get((method, route))):
            self._saves.labels(kind).inc()

    def failed(self, kind: str) -> None:
        """Count an error by its class."""
        self._errors.labels(kind).inc()

    @contextmanager
    def waiting(self, model: str) -> Iterator[None]:
        """Count an inference that is waited for while the block runs."""
        gauge = self._waiting.labels(model)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def inferred(self, call: InferCall, reply: InferReply) -> None:
        """Record an inference, with the seconds that each of its stages took."""
        for stage, seconds in reply.params.get("latencies", {}).items():
            if isinstance(seconds, int | float):
                self._stages.labels(call.model, stage).observe(seconds)
        for cache, hit in reply.caches.items():
            self._caches.labels(cache, "hit" if hit else "miss").inc()

    def text(
        self,
        described: Mapping[str, Any],
        status: Mapping[str, Any],
        jobs: Iterable[Job],
        *,
        sessions: int,
        checks: int,
    ) -> bytes:
        """All metrics in Prometheus's text format.

        Args:
            described: the app, as `/info/` has it.
            status: counts of images and labels, as `/info/` has them.
            jobs: all jobs.
            sessions: number of stored sessions.
            checks: number of uploads that are checked or wait for it.
        """
        self._sessions.set(sessions)
        self._checks.set(checks)
        for gauge in (self._jobs, self._labels, self._models):
            gauge.clear()
        for job in jobs:
            self._jobs.labels(job.kind.value, job.state.value).inc()
        self._images.set(status["total"])
        for tag, count in status["label_tags"].items():
            self._labels.labels(tag).set(count)
        for name, model in described["models"].items():
            self._models.labels(name, model.get("version", "")).set(1)
        return generate_latest(self._registry)


class MeasuredInference:
    """Inference whose answers are counted; see `Inference`."""

    def __init__(self, inference: Inference, metrics: Metrics) -> None:
        self._inference = inference
        self._metrics = metrics

    @property
    def ready(self) -> bool:
        """See `Inference`."""
        return self._inference.ready

    async def infer(self, call: InferCall) -> InferReply:
        """See `Inference`."""
        with self._metrics.waiting(call.model):
            reply = await self._inference.infer(replace(call, request=REQUEST.get()))
        self._metrics.inferred(call, reply)
        return reply

    async def stream(self, call: InferCall) -> AsyncGenerator[InferReply, None]:
        """See `Inference`."""
        call = replace(call, request=REQUEST.get())
        with self._metrics.waiting(call.model):
            async with aclosing(self._inference.stream(call)) as replies:
                async for reply in replies:
                    self._metrics.inferred(call, reply)
                    yield reply

    def prefetch(self, handed_out: HandedOut) -> None:
        """See `Inference`."""
        self._inference.prefetch(handed_out)


class Measured:
    """Middleware that counts requests, by their route."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", NONE)
            self._metrics.answered(scope["method"], route, status, time.perf_counter() - began)
