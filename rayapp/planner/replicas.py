"""Plan: how a machine is shared between the annotators' clicks and background work. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from rayapp.planner.machine import Hardware
from rayapp.runtime import gpu_shares

GIB = 1 << 30
CORES_PER_REPLICA = 4
"""Threads per network on the CPU; more gain little, so further cores serve another annotator with another replica."""
EXTRA_CPUS = 3
"""Logical CPUs for the gateway and background work."""
REPLICA_MEMORY = 12 * GIB
"""Bytes of GPU memory per replica; it may need half of them, for CUDA itself, its volumes and a forward pass."""
REPLICAS_PER_GPU = 4
"""Maximum number of replicas per GPU; more would wait for each other's kernels."""
CACHE_SHARE = 0.25
"""Fraction of memory for the volume caches of all replicas; the network, training and the disk cache need the rest."""
CACHE = (GIB // 4, 8 * GIB)
"""Minimum and maximum volume cache of one replica, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Use of a machine: device and precision of networks, number of replicas, and the resources of each.

    Attributes:
        device: "cuda" or "cpu".
        precision: "float32" or "bfloat16".
        replicas: number of inference replicas.
        cpus: logical CPUs of the Ray node.
        threads: threads of a network on the CPU.
        volume_cache: volume cache of each replica, in bytes.
        replica_gpus: share of a GPU of each replica; 0 without GPUs.
        training_gpus: share of a GPU of a training worker; 0 without GPUs.
    """

    device: str
    precision: str
    replicas: int
    cpus: int
    threads: int
    volume_cache: int
    replica_gpus: float = 0.0
    training_gpus: float = 0.0


def plan(machine: Hardware, *, sharing: int = 1) -> Plan:
    """Plan how to use a machine: a share of every GPU for as many replicas as its memory holds, or several cores per
    replica.

    Args:
        machine: the machine's resources.
        sharing: number of replicas that memory and cores must suffice for, if more than are planned.
    """
    if machine.gpus:
        bf16 = all(gpu.bf16 for gpu in machine.gpus)
        smallest = min(gpu.memory for gpu in machine.gpus)
        each = min(REPLICAS_PER_GPU, max(1, smallest // REPLICA_MEMORY))
        device, replicas, share = "cuda", each * len(machine.gpus), gpu_shares.CLICKS / each
    else:
        bf16 = machine.cpu_bf16
        device, replicas, share = "cpu", max(1, machine.cores // CORES_PER_REPLICA), 0.0
    least, most = CACHE
    return Plan(
        device=device,
        precision="bfloat16" if bf16 else "float32",
        replicas=replicas,
        cpus=max(machine.cores, replicas + EXTRA_CPUS),
        threads=max(1, machine.cores // max(replicas, sharing)),
        volume_cache=max(least, min(most, int(CACHE_SHARE * machine.memory) // max(replicas, sharing))),
        replica_gpus=share,
        training_gpus=gpu_shares.TRAINING if machine.gpus else 0.0,
    )
