"""Background work rests while somebody waits for an answer of another process, and never for good."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayapp.runtime import priority
from rayapp.runtime.priority import ForegroundLoad

ROOT = Path(__file__).parents[2]
ASKED = """
import sys
from pathlib import Path
from rayapp.runtime.priority import ForegroundLoad
load = ForegroundLoad(Path(sys.argv[1]))
for line in sys.stdin:
    getattr(load, line.strip())()
    print("done", flush=True)
"""
RESTING = """
import sys, torch
from pathlib import Path
from rayapp.runtime import priority
from tests.runtime.test_priority import FakeTime
priority.LOCK_FILE, priority.time = Path(sys.argv[1]), FakeTime()
priority.pause_between_layers()
layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True))
asked = torch.ones(1, 4)
for line in sys.stdin:
    before = priority.time.now
    if line.strip() == "forward":
        answer = layer(asked)
    elif line.strip() == "backward":
        answer.sum().backward()
    else:
        priority.time.sleep(priority.MAX_PAUSE_S)
    print(priority.time.now - before, flush=True)
"""


class FakeTime:
    """The clock of one process, which only its own sleep moves on."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Other:
    """Another process, told what to do by lines."""

    def __init__(self, script: str, place: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def told(self, what: str) -> str:
        """Its answer once it has done it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer, "the process ended"
        return answer


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
        assert mine.elsewhere()
        first.told("end")
        assert mine.elsewhere()
        second.told("end")
        assert not mine.elsewhere()


def test_processes_with_the_same_id_in_two_containers_are_told_apart(place: Path):
    mine = ForegroundLoad(place)
    contained = "import os; os.getpid = lambda: 7" + ASKED
    with other(contained, place) as first, other(contained, place) as second:
        first.told("begin")
        second.told("begin")
        first.told("end")
        assert mine.elsewhere()
        second.told("end")
        assert not mine.elsewhere()


def test_who_waits_for_this_process_does_not_make_it_rest(place: Path):
    mine = ForegroundLoad(place)
    mine.begin()
    assert not mine.elsewhere()


def test_nobody_waits_for_a_process_that_was_killed(place: Path):
    mine = ForegroundLoad(place)
    with other(ASKED, place) as dying:
        dying.told("begin")
        assert mine.elsewhere()
        dying.process.kill()
        dying.process.wait()
        assert not mine.elsewhere()


def test_a_rest_ends_with_the_click_or_after_a_while_and_then_work_goes_on_for_as_long(
    place: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = FakeTime()
    monkeypatch.setattr(priority, "time", clock)
    mine = ForegroundLoad(place)

    def rested() -> float:
        before = clock.now
        mine.pause()
        return clock.now - before

    with other(ASKED, place) as clicked:
        clicked.told("begin")
        assert rested() == pytest.approx(priority.MAX_PAUSE_S, abs=2 * priority.POLL_S)
        assert [rested() for _ in range(100)] == [0] * 100
        clock.sleep(priority.MAX_PAUSE_S / 2)
        assert rested() == 0
        clock.sleep(priority.MAX_PAUSE_S)
        assert rested() == pytest.approx(priority.MAX_PAUSE_S, abs=2 * priority.POLL_S)
        clock.sleep(2 * priority.MAX_PAUSE_S)
        clicked.told("end")
        assert rested() == 0


def test_layers_wait_forward_and_backward_while_somebody_waits(place: Path):
    with other(ASKED, place) as clicked, other(RESTING, place) as background:
        assert float(background.told("forward")) == 0
        assert float(background.told("backward")) == 0
        clicked.told("begin")
        assert float(background.told("forward")) >= priority.MAX_PAUSE_S
        background.told("a moment without layers")
        assert float(background.told("backward")) >= priority.MAX_PAUSE_S
        clicked.told("end")
        background.told("a moment without layers")
        assert float(background.told("forward")) == 0


def test_without_the_file_nobody_seems_to_wait(tmp_path: Path):
    mine = ForegroundLoad(tmp_path / "no folder" / "waited-for")
    mine.begin()
    assert not mine.elsewhere()
    mine.pause()
    mine.end()
    mine.close()


def test_the_file_is_never_a_link_to_another(place: Path, tmp_path: Path):
    place.symlink_to(tmp_path / "other")
    ForegroundLoad(place).begin()
    assert not (tmp_path / "other").exists()
