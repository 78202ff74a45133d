"""What the planner makes of machines that it is told about, and of this one."""

from __future__ import annotations

import os

import torch

from rayapp.planner import Gpu, Hardware, Plan, hardware, plan

GIB = 1 << 30


def machine(cores: int, *gpus: Gpu, cpu_bf16: bool = False) -> Hardware:
    return Hardware(cores=cores, memory=16 * GIB, shared_memory=8 * GIB, gpus=gpus, cpu_bf16=cpu_bf16)


def test_a_small_machine_gets_one_replica_and_room_beside_it():
    assert plan(machine(2)) == Plan(device="cpu", precision="float32", replicas=1, cpus=4)


def test_a_large_machine_without_a_gpu_gets_several_replicas():
    assert plan(machine(16, cpu_bf16=True)) == Plan(device="cpu", precision="bfloat16", replicas=4, cpus=16)


def test_every_gpu_gets_a_replica_and_the_oldest_decides_the_precision():
    new, old = Gpu(name="new", memory=24 * GIB, bf16=True), Gpu(name="old", memory=16 * GIB, bf16=False)
    assert plan(machine(8, new, new)) == Plan(device="cuda", precision="bfloat16", replicas=2, cpus=8)
    assert plan(machine(2, new, old)) == Plan(device="cuda", precision="float32", replicas=2, cpus=5)


def test_this_machine_is_seen_as_it_is():
    found = hardware()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert GIB // 4 < found.memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert len(found.gpus) == torch.cuda.device_count()
