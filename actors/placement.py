"""Placement of a training's workers on the cluster's nodes, and the advice where no node has room.

Ray Train waits without end for workers that no node can hold; people want to know within seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import ray
from ray._private.state import available_resources_per_node, total_resources_per_node

from rayapp.runtime import gpu_shares

Resources = Mapping[str, float]
SHOWN = ("GPU", "CPU")


def worker_resources(cluster: Resources) -> dict[str, float]:
    """Resources of one training worker, by Ray's names, on a cluster with these resources in all."""
    return {"CPU": 1.0, "GPU": gpu_shares.TRAINING} if cluster.get("GPU") else {"CPU": 1.0}


def replicas_beside(most: int, *, asked: Resources, node: Resources, nodes: int) -> int:
    """Largest number of inference replicas, this one included, that share its node's cores and memory.

    Args:
        most: replicas of the whole cluster, at most.
        asked: what a replica asks of a node, by Ray's names (`CPU`, `GPU`).
        node: what the replica's node has when nothing runs on it.
        nodes: nodes that replicas may be on.
    """
    share = asked.get("GPU", 0.0)
    if share:
        fitting = int(node.get("GPU", 0.0) * gpu_shares.CLICKS / share + 1e-6)
    else:
        fitting = math.ceil(most / max(1, nodes))  # Ray spreads them
    return max(1, min(most, fitting))


def replicas_here(most: int) -> int:
    """`replicas_beside` for the actor that asks."""
    asked = ray.get_runtime_context().get_assigned_resources()
    whole = total_resources_per_node()
    hosts = [node for node in whole.values() if _fits({name: asked.get(name, 0.0) for name in SHOWN}, node)]
    here = whole.get(ray.get_runtime_context().get_node_id(), {})
    return replicas_beside(most, asked=asked, node=here, nodes=len(hosts))


def shortage(worker: Resources) -> str | None:
    """Advice on why no node of this cluster has room for one such worker now; None if one has."""
    return advice(
        worker, free=list(available_resources_per_node().values()), whole=list(total_resources_per_node().values())
    )


def advice(worker: Resources, *, free: Sequence[Resources], whole: Sequence[Resources]) -> str | None:
    """Advice on a worker that fits on no node: the resource that is short, and what to do about it.

    Args:
        worker: what one worker asks of a node, by Ray's names (`CPU`, `GPU`); a GPU may be asked for in part.
        free: what is left on each node.
        whole: what each node has when nothing runs on it.

    Returns:
        A sentence for the job's details; None if a node has room.
    """
    if any(_fits(worker, node) for node in free):
        return None
    asked = " and ".join(f"{amount:g} {name}" for name, amount in worker.items() if amount)
    left = max(free, key=lambda node: [node.get(name, 0.0) for name in SHOWN], default={})
    rest = ", ".join(f"{left.get(name, 0.0):g} {name}" for name in SHOWN if worker.get(name))
    if any(_fits(worker, node) for node in whole):
        cure = "it starts when another job or an idle replica gives its share back (see replica_gpus and --replicas)"
    else:
        cure = "no node is large enough: add one, or start the server with more (--num-cpus)"
    return f"waits for room: a worker needs {asked}, the freest node has {rest or 'nothing'} left; {cure}"


def _fits(worker: Resources, node: Resources) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in worker.items())
