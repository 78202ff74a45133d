"""Placement on this cluster's nodes: what each kind of process asks for here and now, and what waits for room.

The arithmetic is that of `rayapp.planner.shares`; here are the nodes as Ray knows them. To be asked from any process
that is connected to Ray, as often as something is placed, since nodes come and go.
"""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray._private.state import available_resources_per_node, state, total_resources_per_node
from ray.autoscaler.v2.sdk import get_cluster_status

from rayapp.config import Settings
from rayapp.planner.machine import gpu_memory
from rayapp.planner.shares import (
    Node,
    Resources,
    Shares,
    replicas_on,
    scorers_on,
    shares,
    shortage,
)
from rayapp.runtime import host

ACCELERATOR = "accelerator_type:"
"""Prefix of the resource by which Ray names the GPUs of a node."""


def nodes(settings: Settings) -> dict[str, Node]:
    """The nodes that have joined, by Ray's ids."""
    cores = host.cores() if settings.ray_address is None else None
    return {node: node_of(resources, cores=cores) for node, resources in total_resources_per_node().items()}


def node_of(resources: Mapping[str, float], *, cores: int | None = None) -> Node:
    """A node with these resources, by Ray's names; its `cores` if Ray was told of more CPUs than it has."""
    kinds = [name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)]
    known = [memory for kind in kinds if (memory := gpu_memory(kind)) is not None]
    gpus = int(resources.get("GPU", 0))
    return Node(cpus=resources.get("CPU", 0.0), cores=cores, gpus=gpus, gpu_memory=min(known, default=None))


def shares_now(settings: Settings) -> Shares:
    """The requests of each kind of process on the nodes that have joined, or that the autoscaler may start."""
    joined = list(nodes(settings).values())
    if not any(node.gpus for node in joined) and (state.get_max_resources_from_cluster_config() or {}).get("GPU"):
        joined = [Node(cpus=1, gpus=1)]
    return shares(
        joined, replicas=settings.replicas, replica_gpus=settings.replica_gpus, fixed=settings.ray_address is None
    )


def most_replicas(settings: Settings, replica: Resources) -> int:
    """Inference replicas at most: as the settings say, but on a node of the server's own no more than it holds."""
    low, high = settings.replicas
    if settings.ray_address is not None:
        return high
    return max(low, min(high, sum(replicas_on(node, replica) for node in nodes(settings).values())))


def replicas_here(settings: Settings) -> int:
    """Inference replicas that find room on the node of the one that asks, this one included."""
    context = ray.get_runtime_context()
    asked = {name: context.get_assigned_resources().get(name, 0.0) for name in ("CPU", "GPU")}
    here = nodes(settings).get(context.get_node_id())
    return 1 if here is None or not asked["CPU"] else max(1, replicas_on(here, asked))


def scorers_now(settings: Settings, scorer: Resources) -> int:
    """Scoring workers that the nodes have room for beside what runs there, but at least one."""
    whole, free = total_resources_per_node(), available_resources_per_node()
    share = scorer.get("GPU", 0.0)
    count = 0
    for key, node in nodes(settings).items():
        memory = host.memory() if settings.ray_address is None else int(whole[key].get("memory", 0))
        room = scorers_on(node, scorer, memory=memory)
        count += min(room, int(free.get(key, {}).get("GPU", 0.0) / share)) if share else room
    return max(1, count)


def waits_for(asked: Resources) -> str | None:
    """Advice on why no node has room for one such worker now; None if one has."""
    free, whole = available_resources_per_node().values(), total_resources_per_node().values()
    return shortage(asked, free=list(free), whole=list(whole))


def coming() -> int:
    """Nodes that the cluster's autoscaler is starting; 0 without one."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    launches: list[int] = [launch.count for launch in status.pending_launches]
    return sum(launches) + len(status.pending_nodes)
