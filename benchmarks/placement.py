"""Replicas, trainings and scoring workers as Ray places them on this machine, or on one that is only described.

    python -m benchmarks.placement [--gpus 8] [--cpus 64] [--memory 80]

Without flags it takes this machine as it is. With `--gpus` Ray is told of GPUs that need not exist; nothing computes on
them. Starts a Ray node of its own, and in it as many processes as the planner holds for right, all doing nothing: first
the replicas, then trainings, then scoring. Prints which GPU each was given, and the seconds until all had started.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray

from rayapp.planner.machine import Gpu, hardware
from rayapp.planner.replicas import node_of
from rayapp.planner.shares import replicas_on, scorers_on, shares, trainings_on

STARTING_S = 60.0
"""Seconds for the processes of one kind to start; those that have not by then have found no room."""


class Idle:
    """A process that only holds what it was given."""

    def gpus(self) -> list[int]:
        """The GPUs that it was given a part of."""
        return [int(number) for number in ray.get_gpu_ids()]


def placed(kind: str, count: int, asked: Mapping[str, float]) -> list[Any]:
    """Start processes of a kind, and print where they are."""
    began = time.perf_counter()
    options = {"num_cpus": asked.get("CPU", 0), "num_gpus": asked.get("GPU", 0)}
    processes = [ray.remote(Idle).options(**options).remote() for _ in range(count)]
    where, waiting = ray.wait([each.gpus.remote() for each in processes], num_returns=count, timeout=STARTING_S)
    took = time.perf_counter() - began
    given = sorted(number for gpus in ray.get(where) for number in gpus)
    print(f"{kind}: {len(where)} of {count} placed in {took:.1f} s, each {dict(asked)}, on GPUs {given or 'none'}")
    if waiting:
        print(f"{kind}: {len(waiting)} found no room")
    return processes


def main() -> None:
    """Place and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, help="GPUs that Ray is told of")
    parser.add_argument("--cpus", type=int, help="cores that Ray is told of")
    parser.add_argument("--memory", type=int, default=24, help="GiB of each of these GPUs")
    options = parser.parse_args()
    machine = hardware()
    if options.gpus is not None:
        card = Gpu(name="described", memory=options.memory << 30, bf16=True)
        machine = replace(machine, gpus=(card,) * options.gpus)
    if options.cpus is not None:
        machine = replace(machine, cores=options.cpus)
    node = node_of(machine)
    asked = shares([node])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="place") as folder:
        ray.init(
            address="local",
            num_cpus=int(node.cpus),
            num_gpus=node.gpus,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            kept = placed("replicas", replicas_on(node, asked.replica), asked.replica)
            kept += placed("training", trainings_on(node, asked), asked.training)
            kept += placed("scoring", 1, asked.scorer)
            print(f"scoring workers at most: {scorers_on(node, asked.scorer, memory=machine.memory)}")
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
