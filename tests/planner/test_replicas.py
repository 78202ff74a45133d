"""Plans for described machines, and for this one."""

from __future__ import annotations

import os

import pytest
import torch

from rayapp.planner.machine import Gpu, Hardware, hardware
from rayapp.planner.replicas import Plan, node_of, plan
from rayapp.planner.shares import SCORING, shares

GIB = 1 << 30


def machine(cores: int, *gpus: Gpu, cpu_bf16: bool = False, memory: int = 16) -> Hardware:
    return Hardware(cores=cores, memory=memory * GIB, shared_memory=8 * GIB, gpus=gpus, cpu_bf16=cpu_bf16)


def gpu(memory: int, *, bf16: bool = True) -> Gpu:
    return Gpu(name="some", memory=memory * GIB, bf16=bf16)


def test_a_small_machine_gets_one_replica_and_room_beside_it():
    assert plan(machine(2)) == Plan(
        device="cpu", precision="float32", replicas=1, cpus=3, threads=2, volume_cache=4 * GIB, replica_cpus=2.0
    )


def test_a_large_machine_without_a_gpu_gets_several_replicas():
    assert plan(machine(16, cpu_bf16=True)) == Plan(
        device="cpu", precision="bfloat16", replicas=4, cpus=17, threads=4, volume_cache=GIB, replica_cpus=4.0
    )


def test_one_gpu_is_shared_between_clicks_and_training():
    chosen = plan(machine(8, gpu(24)))
    assert (chosen.device, chosen.precision, chosen.replicas, chosen.cpus) == ("cuda", "bfloat16", 2, 9)
    assert (chosen.replica_gpus * chosen.replicas, chosen.training_gpus) == (0.4, 0.51)


def test_of_several_gpus_one_is_left_to_training_and_the_others_serve():
    chosen = plan(machine(8, gpu(24), gpu(24)))
    assert (chosen.replicas, chosen.replica_gpus, chosen.training_gpus) == (2, 0.45, 0.51)


CARDS = {"T4": 15, "RTX 3060": 12, "RTX 3080": 10, "A10G": 22, "L4": 22, "RTX 4090": 24, "A100": 79, "H200": 139}


@pytest.mark.parametrize("memory", CARDS.values(), ids=CARDS)
def test_beside_all_replicas_a_training_and_a_scoring_worker_find_room_on_the_only_gpu(memory: int):
    chosen = plan(machine(16, gpu(memory)))
    training = shares([node_of(machine(16, gpu(memory)))]).training["GPU"]
    assert round(chosen.replicas * chosen.replica_gpus + training + SCORING, 4) <= 1
    assert training == chosen.training_gpus > 0.5, "two training workers never meet on a GPU"


@pytest.mark.parametrize(("memory", "replicas"), [(6, 1), (12, 1), (24, 2), (80, 4)])
def test_a_gpu_holds_as_many_replicas_as_its_memory_does(memory: int, replicas: int):
    chosen = plan(machine(8, gpu(memory)))
    assert (chosen.replicas, chosen.replica_gpus) == (replicas, 0.4 / replicas)


def test_the_oldest_and_the_smallest_gpu_decide():
    chosen = plan(machine(2, gpu(24), gpu(12, bf16=False)))
    assert (chosen.precision, chosen.replicas, chosen.cpus) == ("float32", 1, 3)


def test_more_replicas_than_planned_share_the_same_memory_and_cores():
    assert plan(machine(2), sharing=8).volume_cache * 8 == plan(machine(2)).volume_cache
    assert [plan(machine(8), sharing=n).threads for n in (1, 2, 4, 9)] == [4, 4, 2, 1]


def test_volumes_prepared_on_a_gpu_are_bounded_by_its_own_memory():
    assert plan(machine(8)).prepared_cache is None
    for memory in CARDS.values():
        chosen = plan(machine(16, gpu(memory), gpu(memory), memory=512))
        assert chosen.prepared_cache is not None
        assert GIB <= chosen.prepared_cache * chosen.replicas <= memory * GIB / 4
    several = plan(machine(16, gpu(24), memory=512), sharing=8)
    assert several.prepared_cache == 3 * GIB // 8


def test_a_replica_always_keeps_some_volumes_and_never_all_memory():
    assert plan(machine(2, memory=1)).volume_cache == GIB // 4
    assert plan(machine(2, memory=512)).volume_cache == 8 * GIB


def test_this_machine_is_seen_as_it_is():
    found = hardware()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert GIB // 4 < found.memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert len(found.gpus) == torch.cuda.device_count()
