"""Background work rests while somebody waits for an answer of another process, and never for good."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayapp.runtime import priority
from rayapp.runtime.priority import ForegroundLoad

ASKED = """
import sys
from pathlib import Path
from rayapp.runtime.priority import ForegroundLoad
waited_for = ForegroundLoad(Path(sys.argv[1]))
for line in sys.stdin:
    getattr(waited_for, line.strip())()
    print("done", flush=True)
"""
RESTING = """
import sys, time, torch
from pathlib import Path
from rayapp.runtime import priority
priority.PLACE = Path(sys.argv[1])
priority.rest_between_layers()
layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True))
asked = torch.ones(1, 4)
for line in sys.stdin:
    if line.strip() == "forward":
        answer = layer(asked)
    else:
        answer.sum().backward()
    print("done", flush=True)
"""


class Other:
    """Another process, told what to do by lines."""

    def __init__(self, script: str, place: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self, what: str) -> float:
        """Seconds that it took to do it."""
        began = time.monotonic()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"
        return time.monotonic() - began


@contextmanager
def other(script: str, place: Path) -> Iterator[Other]:
    running = Other(script, place)
    yield running
    running.process.kill()
    running.process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "waited-for"


def test_it_is_seen_when_somebody_waits_for_any_of_several_others(place: Path):
    mine = ForegroundLoad(place)
    with other(ASKED, place) as first, other(ASKED, place) as second:
        first.told("begin")
        second.told("begin")
        assert mine.by_others()
        first.told("end")
        assert mine.by_others()
        second.told("end")
        assert not mine.by_others()


def test_who_waits_for_this_process_does_not_make_it_rest(place: Path):
    mine = ForegroundLoad(place)
    mine.begin()
    assert not mine.by_others()


def test_nobody_waits_for_a_process_that_was_killed(place: Path):
    mine = ForegroundLoad(place)
    with other(ASKED, place) as dying:
        dying.told("begin")
        assert mine.by_others()
        dying.process.kill()
        dying.process.wait()
        assert not mine.by_others()


def test_a_rest_ends_with_the_click_or_after_a_while_and_then_work_goes_on_for_as_long(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(priority, "REST_S", 0.3)
    mine = ForegroundLoad(place)
    with other(ASKED, place) as clicked:
        clicked.told("begin")
        began = time.monotonic()
        mine.rest()
        rested = time.monotonic()
        assert rested - began >= 0.3
        rests = 0
        while time.monotonic() < rested + 0.2:
            mine.rest()
            rests += 1
        assert rests > 100  # they ended at once
        time.sleep(0.2)
        began = time.monotonic()
        mine.rest()
        assert time.monotonic() - began >= 0.3
        clicked.told("end")
        began = time.monotonic()
        mine.rest()
        assert time.monotonic() - began < 0.1


def test_layers_wait_forward_and_backward_while_somebody_waits(place: Path):
    with other(ASKED, place) as clicked, other(RESTING, place) as background:
        background.told("forward")
        background.told("backward")
        clicked.told("begin")
        assert background.told("forward") > 0.9 * priority.REST_S
        time.sleep(priority.REST_S)
        assert background.told("backward") > 0.9 * priority.REST_S
        clicked.told("end")
        assert background.told("forward") < 0.5 * priority.REST_S


def test_without_the_file_nobody_seems_to_wait(tmp_path: Path):
    mine = ForegroundLoad(tmp_path / "no folder" / "waited-for")
    mine.begin()
    assert not mine.by_others()
    mine.rest()
    mine.end()
    mine.close()


def test_the_file_is_never_a_link_to_another(place: Path, tmp_path: Path):
    place.symlink_to(tmp_path / "other")
    ForegroundLoad(place).begin()
    assert not (tmp_path / "other").exists()
