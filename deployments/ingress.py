"""The gateway as the ingress deployment of Ray Serve: stateless replicas that each build the same FastAPI app."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from actors import ON_HEAD, name_of
from deployments.connections import stay_inside
from deployments.inference import NAME as INFERENCE
from deployments.inference import RoutedInference
from deployments.services import Services
from rayapp.config import Settings
from rayapp.runtime import logs

NAME = "gateway"
ONGOING = 1000
"""Concurrent requests per gateway replica; almost all of them wait for other processes."""


def gateway_deployment(settings: Settings, datastore: Any, models: Any, jobs: Any) -> serve.Deployment:
    """Build the ingress deployment. It finds the inference deployment by name in its own application."""
    application = name_of("rayapp", settings)

    def build() -> FastAPI:
        from deployments.gateway import build_gateway

        stay_inside()
        logs.configure(settings)
        inference = RoutedInference(serve.get_deployment_handle(INFERENCE, app_name=application))
        return build_gateway(Services.of(settings, datastore=datastore, models=models, jobs=jobs, inference=inference))

    return serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        max_ongoing_requests=ONGOING,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={"num_cpus": 0, "resources": ON_HEAD},
    )
