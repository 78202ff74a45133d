"""Plan: how a machine is shared between the annotators' clicks and background work. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from rayapp.planner.machine import Hardware
from rayapp.planner.shares import GIB, MOST_THREADS, Node, replicas_on, replicas_per_gpu, shares

CACHE_SHARE = 0.25
"""Fraction of memory for the volume caches of all replicas; the network, training and the disk cache need the rest."""
CACHE = (GIB // 4, 8 * GIB)
"""Minimum and maximum volume cache of one replica, in bytes."""
PREPARED_SHARE = 0.125
"""Fraction of a GPU's memory for the prepared volumes of all its replicas, which are kept there."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Use of a machine: device and precision of networks, number of replicas, and the resources of each.

    Attributes:
        device: "cuda" or "cpu".
        precision: "float32" or "bfloat16".
        replicas: number of inference replicas.
        cpus: logical CPUs of the Ray node.
        threads: threads of a replica.
        volume_cache: volume cache of each replica, in bytes.
        prepared_cache: bytes of each replica's prepared volumes on its GPU; None where they are in the machine's memory
            and part of the volume cache.
        replica_cpus: logical CPUs that each replica asks for.
        replica_gpus: share of a GPU of each replica; 0 without GPUs.
        training_gpus: share of a GPU of a training worker; 0 without GPUs.
    """

    device: str
    precision: str
    replicas: int
    cpus: int
    threads: int
    volume_cache: int
    prepared_cache: int | None = None
    replica_cpus: float = 1.0
    replica_gpus: float = 0.0
    training_gpus: float = 0.0


def node_of(machine: Hardware, *, cpus: int | None = None) -> Node:
    """The machine as a Ray node of its own.

    Args:
        machine: the machine's resources.
        cpus: logical CPUs; None for one for each core, and one that background work asks for.
    """
    memory = min((gpu.memory for gpu in machine.gpus), default=None)
    return Node(cpus=cpus or machine.cores + 1, cores=machine.cores, gpus=len(machine.gpus), gpu_memory=memory)


def plan(machine: Hardware, *, sharing: int | None = None) -> Plan:
    """Plan how to use a machine: a share of a GPU for as many replicas as its memory holds, or several cores per
    replica.

    Args:
        machine: the machine's resources.
        sharing: number of replicas that memory and cores must suffice for, if more than are planned; on a machine with
            GPUs also if fewer, since the CPU is not what bounds them.
    """
    node, gpus = node_of(machine), machine.gpus
    asked = shares([node])
    smallest = min((gpu.memory for gpu in gpus), default=0)
    each = replicas_per_gpu(smallest) if gpus else 0
    replicas = replicas_on(node, asked.replica)
    bf16 = all(gpu.bf16 for gpu in gpus) if gpus else machine.cpu_bf16
    beside = (sharing or replicas) if gpus else max(replicas, sharing or 1)
    threads = max(1, machine.cores // beside)
    least, most = CACHE
    per_gpu = max(each, -(-beside // max(1, len(gpus) - 1)))
    return Plan(
        device="cuda" if gpus else "cpu",
        precision="bfloat16" if bf16 else "float32",
        replicas=replicas,
        cpus=int(node.cpus),
        threads=min(threads, MOST_THREADS) if gpus else threads,
        volume_cache=max(least, min(most, int(CACHE_SHARE * machine.memory) // beside)),
        prepared_cache=int(PREPARED_SHARE * smallest) // per_gpu if gpus else None,
        replica_cpus=asked.replica["CPU"],
        replica_gpus=asked.replica.get("GPU", 0.0),
        training_gpus=asked.training.get("GPU", 0.0),
    )
