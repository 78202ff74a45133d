"""Two Ray nodes on one machine, a replica on each: clicks reach both, and one image stays on one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict

import ray
from ray import cloudpickle, serve

from deployments.inference import RoutedInference, inference_deployment
from rayapp.config import Settings
from rayapp.serving.messages import InferCall, InferReply


class WhereAmI:
    """Stands where the app would be: answers with the process and the node that got the call."""

    def __init__(self, settings, datastore, models):
        self._here = {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    async def infer(self, call: InferCall) -> InferReply:
        return InferReply(body=None, ext="", params=self._here)


def test_clicks_reach_both_nodes_and_one_image_stays_on_one(cluster, tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes cannot import the tests
    ray.init(address=cluster.address, namespace="two-nodes", log_to_driver=False)
    settings = Settings(studies=tmp_path, workspace=tmp_path, replicas=(2, 2))
    serve.start(proxy_location="Disabled")
    # The deployment's own options (router, queues, a CPU each, so one fits on a node), without models.
    deployment = inference_deployment(settings, {"CPU": 1.0}).options(func_or_class=WhereAmI)
    handle = serve.run(deployment.bind(settings, None, None), name="rayapp", route_prefix=None)
    where = asyncio.run(_ask(RoutedInference(handle)))
    serve.shutdown()
    assert len(where) == 12
    assert all(len(places) == 1 for places in where.values()), where
    assert len({node for places in where.values() for _, node in places}) == 2


async def _ask(inference: RoutedInference) -> dict[str, set[tuple[int, str]]]:
    where: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for _ in range(4):
        for number in range(12):
            reply = await inference.infer(InferCall(model="m", key=f"image_{number}"))
            where[f"image_{number}"].add((reply.params["pid"], reply.params["node"]))
    return where
