"""Under load a second replica comes, and nobody who clicks meanwhile is turned away."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil
import pytest

from rayapp.client import Client
from tests.conftest import MARK, Running, started
from tests.waiting import until

PATIENCE_S = 90.0


def replicas(running: Running) -> int:
    """Processes that serve inference in this server."""
    found = 0
    for process in psutil.process_iter():
        try:
            mine = process.environ().get(MARK) == running.mark
            found += mine and re.match(r"ray::ServeReplica:rayapp-\w+:inference", process.cmdline()[0]) is not None
        except (psutil.Error, IndexError):
            continue
    return found


@pytest.mark.slow
def test_load_brings_a_second_replica_and_no_click_fails(tmp_path: Path):
    with started(tmp_path, "--replicas", "1:2", "--num-cpus", "6") as running:
        assert replicas(running) == 1
        done = threading.Event()
        answered, failed = [0] * 8, []

        def annotate(number: int) -> None:
            with Client(running.url, client_id=f"annotator-{number}") as client:
                while not done.is_set():
                    try:
                        client.infer_box("deepedit", f"torso_{number % 4}", params={"liver": [[30, 25, 20 + number]]})
                        answered[number] += 1
                    except Exception as error:
                        failed.append(error)
                        return

        annotators = [threading.Thread(target=annotate, args=(number,)) for number in range(8)]
        for thread in annotators:
            thread.start()
        try:
            until(lambda: failed or replicas(running) == 2, within=PATIENCE_S, every=0.5)
            before = list(answered)
            until(lambda: failed or all(now > then for now, then in zip(answered, before, strict=True)))
        finally:
            done.set()
            for thread in annotators:
                thread.join()
        assert failed == []
