"""The threads of a replica: which do not wait for which."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from rayapp.runtime import priority
from rayapp.serving.executors import Executors, GaveWay


@pytest.fixture
def lanes():
    lanes = Executors(threads=1)
    yield lanes
    lanes.close()


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
async def test_strokes_stand_back_behind_networks_where_cores_are_short(lanes):
    strokes, network = [await lanes.model(niceness, network=network) for network in (False, True)]
    assert strokes > network
    assert network == await lanes.io(niceness)


async def test_background_work_gives_way_while_anybody_waits(lanes):
    lanes.give_way()
    with lanes.click(), lanes.click():
        with pytest.raises(GaveWay):
            lanes.give_way()
        await lanes.quiet(patience=0.01)
    await lanes.quiet()
    lanes.give_way()


async def test_other_processes_see_when_somebody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(priority, "LOCK_FILE", tmp_path / "waited-for")
    lanes = Executors(threads=1)

    def seen():
        asked = f"from pathlib import Path; print(ForegroundLoad(Path({str(priority.LOCK_FILE)!r})).elsewhere())"
        words = (sys.executable, "-c", f"from rayapp.runtime.priority import ForegroundLoad; {asked}")
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "True"

    assert not seen()
    with lanes.click(), lanes.click():
        assert seen()
    assert not seen()
    lanes.close()
