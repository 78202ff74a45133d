"""Leases under calls that are committed in any order and batches, clocks that are set, and restarts (Hypothesis)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rayapp.datastore import leases, steady_clock, studies_folder
from rayapp.datastore.document import DocumentFile
from rayapp.datastore.index import QUARANTINE
from rayapp.datastore.interfaces import ClickEvent
from rayapp.datastore.local import LocalDatastore
from tests.datastore.saves import save
from tests.datastore.stepped_commit import SteppedCommit, Work
from tests.datastore.store_model import Pending
from tests.memory_folder import memory_folder

IMAGES = ("a", "b", "c")
HOLDERS = ("ann/1", "ben/1", "eve/1")
IMAGE, HOLDER = st.sampled_from(IMAGES), st.sampled_from(HOLDERS)
SECONDS = st.sampled_from([1.0, leases.LEASE_S - 1.0, leases.LEASE_S + 1.0, leases.QUARANTINE_S + 1.0])
JUMP = st.sampled_from([-86_400.0, -60.0, 60.0, 86_400.0])


class LeaseMachine(RuleBasedStateMachine):
    """Three annotators, three images, and a clock of its own for the leases.

    The model counts in seconds that really went by. It has for each leased image who holds it and until when.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(studies_folder, "GroupCommit", SteppedCommit)
        self.patch.setattr(DocumentFile, "start", lambda _: None)
        self.root = memory_folder()
        self.monotonic, self.set_by = 1000.0, 0.0
        self.begun = time.time()
        clock = SimpleNamespace(time=self.wall, monotonic=lambda: self.monotonic)
        self.patch.setattr(steady_clock, "time", clock)
        self.leases: dict[str, tuple[str, float]] = {}
        self.final: set[str] = set()
        self.pending: list[Pending] = []

    def teardown(self) -> None:
        try:
            self.all_is_committed()
            self.store.close()
        finally:
            self.patch.undo()
            shutil.rmtree(self.root, ignore_errors=True)

    def wall(self) -> float:
        """The time of day, which people set."""
        return self.begun + self.monotonic + self.set_by

    @initialize()
    def open_the_folder(self) -> None:
        for image in IMAGES:
            (self.root / f"{image}.nii").write_bytes(b"voxels")
        self.start()

    def start(self) -> None:
        """Open the folder as a new process does."""
        self.patch.setattr(steady_clock, "_OFFSET", self.wall() - self.monotonic)
        self.set_at_start = self.set_by
        self.store = LocalDatastore(self.root, watch=False, settle=0.0)

    def begin(self, what: str, work: Callable[[], Any], committed: Callable[[Exception | None, Any], None]) -> None:
        """Begin a call; it stands still wherever it waits for the writer."""
        begun = Work(work)
        if begun.change is not None:
            self.pending.append(Pending(begun, what, committed))

    # Annotators

    @rule(image=IMAGE, holder=HOLDER)
    def an_annotator_asks_for_an_image(self, image: str, holder: str) -> None:
        def committed(error: Exception | None, granted: Any) -> None:
            assert error is None
            held_by, until = self.leases.get(image, (holder, 0.0))
            if held_by != holder and until > self.monotonic:
                assert granted is False, f"{image} is {held_by}'s"
                return
            assert granted is True, f"{image} is nobody else's"
            self.leases[image] = (holder, self.monotonic + leases.LEASE_S)
            self.leases = {i: lease for i, lease in self.leases.items() if lease[1] > self.monotonic}
            own = sorted((until, i) for i, (by, until) in self.leases.items() if by == holder)
            for until, oldest in own[: -leases.MAX_LEASES]:
                equally_old = [i for other, i in own if other == until]  # of these any is given back
                del self.leases[next((i for i in equally_old if i not in self.rows()), oldest)]

        self.begin("ask", lambda: self.serve(image, holder), committed)

    def serve(self, image: str, holder: str) -> Any:
        """Hand the image out."""
        return self.store.serve_next(image, "first", client_id=None, ts=1, holder=holder)

    def rows(self) -> set[str]:
        """The images that are leased in the index."""
        return {image for (image,) in self.store._index.writer.execute("SELECT image_id FROM lease")}

    def worked_on(self, image: str) -> None:
        """Somebody worked on the image."""
        if image in self.leases:
            self.leases[image] = (self.leases[image][0], self.monotonic + leases.LEASE_S)

    @rule(image=IMAGE)
    def somebody_clicks(self, image: str) -> None:
        event = ClickEvent(image_id=image, kind="click", payload={})
        self.begin("click", lambda: self.store.append_events([event]), lambda *_: self.worked_on(image))

    @rule(image=IMAGE, tag=st.sampled_from(["final", "draft"]))
    def somebody_saves(self, image: str, tag: str) -> None:
        def committed(error: Exception | None, _: Any) -> None:
            assert error is None
            if tag == "final" and image not in self.final:
                self.final.add(image)
                self.leases.pop(image, None)
            else:
                self.worked_on(image)

        self.begin("save", lambda: save(self.store, image, tag), committed)

    @rule(image=IMAGE)
    def a_final_label_is_removed(self, image: str) -> None:
        self.begin("remove", lambda: self.store.remove_label(image, "final"), lambda *_: self.final.discard(image))

    @rule(image=IMAGE)
    def an_image_cannot_be_read(self, image: str) -> None:
        def committed(*_: Any) -> None:
            self.leases[image] = (QUARANTINE, self.monotonic + leases.QUARANTINE_S)

        self.begin("quarantine", lambda: self.store.quarantine(image, "it is cut off"), committed)

    # The writer and the clock

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def a_batch_is_committed(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(len(self.pending))))
        batch = [self.pending[place] for place in order[: data.draw(st.integers(1, len(order)))]]
        held = [by for by, _ in self.leases.values()]
        if any(held.count(holder) >= leases.MAX_LEASES for holder in HOLDERS):
            batch = batch[:1]  # whoever asks now gives one back, and which one is looked up
        self.commit(batch)

    def commit(self, batch: list[Pending]) -> None:
        """Commit what these wait for, in one batch, and tell the model in that order."""
        commit = self.store._commit
        assert isinstance(commit, SteppedCommit)
        changes = commit.step([each.work for each in batch])
        for each, change in zip(batch, changes, strict=True):
            if each.steps == 0:
                each.committed(change.error, change.result)
            each.steps += 1
        self.pending = [each for each in self.pending if each.work.change is not None]

    @rule()
    def all_is_committed(self) -> None:
        while self.pending:
            self.commit(self.pending[:1])

    @rule(seconds=SECONDS)
    def time_goes_by(self, seconds: float) -> None:
        self.monotonic += seconds

    @rule(jump=JUMP)
    def the_clock_is_set(self, jump: float) -> None:
        self.set_by += jump

    @rule()
    def the_server_starts_again(self) -> None:
        """The next process reads the clock as it is set now; a lease is never longer than any can be."""
        self.all_is_committed()
        self.store.close()
        set_meanwhile = self.set_by - self.set_at_start
        self.start()
        for image, (holder, until) in list(self.leases.items()):
            longest = leases.QUARANTINE_S if holder == QUARANTINE else leases.LEASE_S
            self.leases[image] = (holder, min(until - set_meanwhile, self.monotonic + longest))

    # What always holds

    @invariant()
    def who_asks_is_offered_what_nobody_else_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        for holder in HOLDERS:
            free = [
                image
                for image in IMAGES
                if image not in self.final
                and not (
                    image in self.leases and self.leases[image][0] != holder and self.leases[image][1] > self.monotonic
                )
            ]
            for order in ("first", "age"):
                assert sorted(self.store.unlabeled(order=order, limit=9, holder=holder)) == free  # type: ignore[arg-type]


def ask(machine: LeaseMachine, holder: str) -> None:
    machine.an_annotator_asks_for_an_image(image="a", holder=holder)
    machine.all_is_committed()


def the_clock_is_set_forwards(machine: LeaseMachine) -> None:
    machine.the_clock_is_set(jump=86_400.0)


def the_clock_is_set_back_and_the_server_restarts(machine: LeaseMachine) -> None:
    machine.the_clock_is_set(jump=-86_400.0)
    machine.the_server_starts_again()
    machine.time_goes_by(seconds=leases.LEASE_S + 1.0)


def somebody_else_asks(machine: LeaseMachine) -> None:
    ask(machine, "ben/1")


def two_ask_in_one_batch(machine: LeaseMachine) -> None:
    for holder in ("ben/1", "eve/1"):
        machine.an_annotator_asks_for_an_image(image="b", holder=holder)
    machine.commit(machine.pending[::-1])


def the_image_cannot_be_read(machine: LeaseMachine) -> None:
    machine.an_image_cannot_be_read(image="a")
    machine.all_is_committed()
    machine.time_goes_by(seconds=leases.LEASE_S + 1.0)


@pytest.mark.parametrize(
    "scene",
    [
        the_clock_is_set_forwards,
        the_clock_is_set_back_and_the_server_restarts,
        somebody_else_asks,
        two_ask_in_one_batch,
        the_image_cannot_be_read,
    ],
    ids=lambda scene: scene.__name__,
)
def test_what_went_wrong_once(scene: Callable[[LeaseMachine], None]) -> None:
    machine = LeaseMachine()
    try:
        machine.open_the_folder()
        ask(machine, "ann/1")
        scene(machine)
        machine.who_asks_is_offered_what_nobody_else_holds()
    finally:
        machine.teardown()


ODD = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, print_blob=False)
TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(ODD, max_examples=4, stateful_step_count=20)


@pytest.mark.slow
class TestLeasesAtLength(LeaseMachine.TestCase):  # type: ignore[misc]
    """The same for minutes."""

    settings = settings(ODD, max_examples=400, stateful_step_count=50, derandomize=False)
