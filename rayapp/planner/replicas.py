"""Plan: how a machine is shared between the annotators' clicks and what runs beside them. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from rayapp.planner.machine import Hardware
from rayapp.runtime import gpu_shares

GIB = 1 << 30
CORES_PER_REPLICA = 4
"""A network on the CPU gains little from more threads than this; beyond, another replica serves another annotator."""
BESIDE_REPLICAS = 3
"""Logical CPUs for the gateway and for background work beside it."""
REPLICA_MEMORY = 12 * GIB
"""Bytes of a GPU for each replica on it, half of which it may come to need: CUDA, its volumes and a forward pass."""
REPLICAS_PER_GPU = 4
"""More of them wait for each other's kernels."""
CACHE_SHARE = 0.25
"""Of the memory, for all replicas' volumes together; the network, training and the disk cache need the rest."""
CACHE = (GIB // 4, 8 * GIB)
"""The least and the most that one replica keeps."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where and in what precision networks run, how many replicas, and what each gets.

    `cpus` are the node's logical CPUs; `replica_gpus` is each replica's share of a GPU and `training_gpus` that of a
    training worker, 0 without GPUs; `threads` are a network's on the CPU; `volume_cache` is in bytes.
    """

    device: str
    precision: str
    replicas: int
    cpus: int
    threads: int
    volume_cache: int
    replica_gpus: float = 0.0
    training_gpus: float = 0.0


def plan(found: Hardware, *, sharing: int = 1) -> Plan:
    """A share of every GPU for as many replicas as its memory holds; without one, a replica for every few cores.

    Memory and cores are shared so that they suffice for `sharing` replicas, should there be more than are planned.
    """
    if found.gpus:
        bf16 = all(gpu.bf16 for gpu in found.gpus)
        smallest = min(gpu.memory for gpu in found.gpus)
        each = min(REPLICAS_PER_GPU, max(1, smallest // REPLICA_MEMORY))
        device, replicas, share = "cuda", each * len(found.gpus), gpu_shares.CLICKS / each
    else:
        bf16 = found.cpu_bf16
        device, replicas, share = "cpu", max(1, found.cores // CORES_PER_REPLICA), 0.0
    least, most = CACHE
    return Plan(
        device=device,
        precision="bfloat16" if bf16 else "float32",
        replicas=replicas,
        cpus=max(found.cores, replicas + BESIDE_REPLICAS),
        threads=max(1, found.cores // max(replicas, sharing)),
        volume_cache=max(least, min(most, int(CACHE_SHARE * found.memory) // max(replicas, sharing))),
        replica_gpus=share,
        training_gpus=gpu_shares.TRAINING if found.gpus else 0.0,
    )
