"""On any machine and cluster clicks, a training and scoring find room together, and ask for what they use."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.planner.machine import GPUS, USABLE, Gpu, Hardware
from rayapp.planner.replicas import node_of, plan
from rayapp.planner.shares import (
    CORES_PER_REPLICA,
    IDLE_CPUS,
    MOST_THREADS,
    SCORING,
    Node,
    Shares,
    fits,
    replicas_on,
    replicas_per_gpu,
    scorers_on,
    shares,
    shortage,
    threads_on,
    trainings_on,
)

GIB = 1 << 30
CORES = (4, 6, 8, 16, 24, 32, 48, 64, 96, 128, 192)
MEMORY = 64 * GIB


def place(asked: Shares, node: Node) -> None:
    """Place on a node, as Ray does, all replicas that it is to hold, a training and then scoring.

    Ray takes a part of a GPU from the fullest one that has room for it.
    """
    cpus, gpus = node.cpus, [1.0] * node.gpus
    trainings = trainings_on(node, asked)
    scorers = scorers_on(node, asked.scorer, memory=MEMORY)
    if asked.scorer.get("GPU"):
        several = asked.scorer["GPU"] > SCORING  # scoring is then done on GPUs that do not serve
        scorers = min(trainings, scorers) if node.gpus > 1 or not several else 0
    everything = [asked.replica] * replicas_on(node, asked.replica)
    everything += [asked.training] * trainings + [asked.scorer] * scorers
    for number, worker in enumerate(everything):
        cpus -= worker.get("CPU", 0.0)
        if share := worker.get("GPU", 0.0):
            fullest = min((left for left in gpus if left >= share - 1e-6), default=None)
            assert fullest is not None, f"worker {number} of {len(everything)} finds no GPU: {gpus}"
            gpus[gpus.index(fullest)] -= share
        assert cpus >= -1e-6, f"worker {number} of {len(everything)} finds no CPU"


def kinds(count: int) -> list[int]:
    return [int(memory * USABLE * GIB) for memory, _ in GPUS.values()] * count


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", GPUS)
def test_everything_is_placed_on_a_machine_with_gpus_and_its_cores_are_used(kind: str, count: int, cores: int):
    memory = int(GPUS[kind][0] * USABLE * GIB)
    node = Node(cpus=cores, gpus=count, gpu_memory=memory)
    asked = shares([node], replicas=(1, 8))
    place(asked, node)
    replicas = replicas_on(node, asked.replica)
    assert replicas == max(1, count - 1) * replicas_per_gpu(memory)
    assert (
        threads_on(node, asked.replica)
        == max(1, int(asked.replica["CPU"]))
        == max(1, min(MOST_THREADS, cores // replicas))
    )
    assert trainings_on(node, asked) == 1
    assert int(1 / asked.training["GPU"]) == 1, "two training workers never meet on a GPU"


@pytest.mark.parametrize("cores", [1, 2, *CORES])
def test_everything_is_placed_on_a_machine_without_gpus_and_its_cores_are_used(cores: int):
    node = Node(cpus=cores)
    asked = shares([node], replicas=(1, 8))
    place(asked, node)
    replicas, threads = replicas_on(node, asked.replica), threads_on(node, asked.replica)
    assert threads - IDLE_CPUS <= asked.replica["CPU"] <= threads
    assert replicas == max(1, cores // CORES_PER_REPLICA)
    assert cores - replicas < replicas * threads <= cores
    assert scorers_on(node, asked.scorer, memory=1 << 50) == cores


@pytest.mark.parametrize("cores", [1, 2, *CORES])
@pytest.mark.parametrize("replicas", [(1, 1), (1, 2), (2, 2), (1, 8), (4, 64)])
def test_a_server_of_its_own_asks_for_one_cpu_per_thread_and_holds_as_many_replicas_as_were_asked_for(
    cores: int, replicas: tuple[int, int]
):
    node = node_of(Hardware(cores=cores, memory=MEMORY, shared_memory=GIB))
    asked = shares([node], replicas=replicas, fixed=True)
    place(asked, node)
    count, threads = replicas_on(node, asked.replica), threads_on(node, asked.replica)
    assert count >= replicas[0]
    assert count >= min(replicas[1], cores // 2)
    assert threads == math.ceil(asked.replica["CPU"])
    if cores >= count:
        assert asked.replica["CPU"] == threads
        assert count * threads <= cores


def test_no_replica_gets_one_thread_on_a_big_machine_whatever_the_cluster_may_grow_to():
    node = Node(cpus=8, gpus=1, gpu_memory=22 * GIB)
    asked = shares([node], replicas=(1, 8))
    assert (asked.replica, threads_on(node, asked.replica)) == ({"CPU": 8.0, "GPU": 0.4}, 8)
    small = shares([node, Node(cpus=2, gpus=1, gpu_memory=15 * GIB)], replicas=(1, 8))
    assert threads_on(node, small.replica) == 8


NODES = st.builds(
    Node,
    cpus=st.sampled_from([0.0, 1.0, 2.0, *map(float, CORES)]),
    gpus=st.sampled_from([0, 0, 1, 2, 4, 8]),
    gpu_memory=st.sampled_from([None, *kinds(1)]),
)


@settings(deadline=None, max_examples=300)
@given(nodes=st.lists(NODES, min_size=1, max_size=6), low=st.integers(1, 4), more=st.integers(0, 60))
def test_everything_is_placed_together_on_any_cluster(nodes: list[Node], low: int, more: int):
    asked = shares(nodes, replicas=(low, low + more))
    for node in nodes:
        place(asked, node)
        threads = threads_on(node, asked.replica)
        count = replicas_on(node, asked.replica)
        assert threads <= max(1, node.cpus)
        assert count == 0 or threads > asked.replica["CPU"] - 1, "it uses the CPUs that it asks for"
    usable = [node for node in nodes if node.cpus and (node.gpus or not asked.on_gpus)]
    held = sum(replicas_on(node, asked.replica) for node in nodes)
    assert held > 0 or not usable
    if usable and not asked.on_gpus:
        assert held >= low or max(node.cpus for node in usable) > 1
    assert any(trainings_on(node, asked) for node in nodes) or not any(node.cpus or node.gpus for node in nodes)
    whole = [node.resources for node in nodes]
    for worker in (asked.training, asked.scorer):
        assert any(fits(worker, node) for node in whole) or not any(node.cpus or node.gpus for node in nodes)


@settings(deadline=None, max_examples=100)
@given(cores=st.sampled_from(CORES), cards=st.lists(st.sampled_from(kinds(1)), max_size=8))
def test_the_plan_of_a_machine_says_what_its_server_asks_for(cores: int, cards: list[int]):
    gpus = tuple(Gpu(name="some", memory=memory, bf16=True) for memory in cards)
    machine = Hardware(cores=cores, memory=MEMORY, shared_memory=GIB, gpus=gpus)
    node, chosen = node_of(machine), plan(machine)
    asked = shares([node], fixed=True)
    assert (chosen.replica_cpus, chosen.replica_gpus) == (asked.replica["CPU"], asked.replica.get("GPU", 0.0))
    assert chosen.threads == threads_on(node, asked.replica)
    assert plan(machine, sharing=replicas_on(node, asked.replica)).threads == chosen.threads


@pytest.mark.parametrize("kind", GPUS)
@pytest.mark.parametrize("count", [2, 4, 8])
def test_no_gpu_of_several_holds_more_replicas_than_its_memory_does_however_ray_packs_them(kind: str, count: int):
    memory = int(GPUS[kind][0] * USABLE * GIB)
    share = shares([Node(cpus=64, gpus=count, gpu_memory=memory)]).replica["GPU"]
    assert int(1 / share) == replicas_per_gpu(memory)


def test_a_replicas_own_share_of_a_gpu_counts():
    node = Node(cpus=8, gpus=2, gpu_memory=22 * GIB)
    assert replicas_on(node, shares([node], replica_gpus=0.125).replica) == 8
    whole = shares([node], replica_gpus=1.0)
    assert replicas_on(node, whole.replica) == 1
    assert trainings_on(Node(cpus=8, gpus=1), whole) == 0
    left = [{"CPU": 0.0, "GPU": 0.0}]
    assert "replica_gpus" in (shortage(whole.training, free=left, whole=[node.resources]) or "")
    without = shares([node], replica_gpus=0)
    assert "GPU" not in without.replica
    assert without.training["GPU"] > 0.5
