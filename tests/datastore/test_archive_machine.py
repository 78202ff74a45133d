"""Two servers on one archive, with everything that goes wrong between them in any order (Hypothesis)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import pytest
import requests
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rayapp.datastore import archive_sender, dicomweb, pacs, series_cache
from rayapp.datastore.interfaces import ImageScore
from rayapp.errors import NotFound
from rayapp.imaging.dicom_seg import MANUFACTURER
from rayapp.protocol import ORIGINAL
from tests.datastore.archive_twin import ArchiveTwin, Twins, http_error, mask, save, slices_of, value_of

OTHER, LABELLED, ARRIVING = "1.2.3.0", "1.2.3.1", "1.2.3.2"
REFUSED = ("1.2.3.3", "1.2.3.4", "1.2.3.5")
"""Series whose labels the archive never takes."""
SLICES = 6
SERVERS = st.sampled_from("ab")
ROUNDS = 3
"""Rounds of sending after which a label is in the archive that takes it."""
WAYS = ("stores", "refuses now", "breaks off", "loses the answer")
"""Ways of an archive to store a label."""
LISTS = ("empty", "short", "away", "shifts")
"""Ways of a list to be wrong."""


class ArchiveMachine(RuleBasedStateMachine):
    """Labels of one series on two servers, and other series: one arrives slice by slice, of some no label can be sent.

    Every label has a number of voxels of its own, by which it is recognised. The model knows for each server the value
    that an annotator saved last (`made`, and under the other tag `originals`), those that may not come back
    (`deleted`), and how many slices were scored.
    """

    def __init__(self, servers: str = "ab") -> None:
        super().__init__()
        self.servers = servers
        self.patch = pytest.MonkeyPatch()
        self.folder = Path(tempfile.mkdtemp(prefix="twin"))
        self.archive = ArchiveTwin()
        self.twins = Twins(self.archive, self.folder)
        self.patch.setattr("rayapp.datastore.pacs.DICOMwebClient", lambda *_, **__: self.archive)
        self.patch.setattr(archive_sender.LabelSender, "start", lambda _: None)  # the rules send, one at a time
        self.patch.setattr(archive_sender, "RETRY_S", 0.0)
        encoded = dicomweb.DicomwebDatastore._encoded

        def breaks(store: Any, image_id: str, revision: Any) -> Any:
            if image_id == REFUSED[-1]:
                raise LookupError("a fault of ours")
            return encoded(store, image_id, revision)

        self.patch.setattr(dicomweb.DicomwebDatastore, "_encoded", breaks)
        self.patch.setattr(pacs, "PAGE", 2)
        self.patch.setattr(pacs, "CONFIRM_S", 0.0)
        self.patch.setattr(series_cache, "GRACE_S", 0.0)
        for name in ("LABEL_SEARCH_S", "FIRST_SEARCH_S"):
            self.patch.setattr(dicomweb, name, 600.0)
        self.stores: dict[str, Any] = {}
        self.values = 0
        self.made: dict[str, int] = {}
        self.deleted: dict[str, set[int]] = {"a": set(), "b": set()}
        self.everywhere: set[int] = set()
        self.scored: dict[str, int] = {}
        self.originals: dict[str, int] = {}
        self.series = 0
        self.faults: list[str] = []

    def teardown(self) -> None:
        try:
            if self.stores:
                self.all_is_sent_in_the_end()
        finally:
            self.archive.before.clear()
            for store in self.twins.opened:
                store.close()
            self.patch.undo()
            shutil.rmtree(self.folder, ignore_errors=True)

    @initialize()
    def open_all(self) -> None:
        for series in (OTHER, LABELLED):
            self.archive.add(self.folder / "files", series)
        self.archive.add(self.folder / "files", ARRIVING, slices=2, shape=(5, 7, SLICES))
        for name in self.servers:
            self.stores[name] = self.twins.server(name)
            self.stores[name].image(LABELLED)

    def new_value(self) -> int:
        self.values += 1
        self.everywhere.add(self.values)
        return self.values

    # Annotators

    @rule(name=SERVERS, as_sent=st.booleans())
    def an_annotator_saves(self, name: str, as_sent: bool = False) -> None:
        """A save, perhaps with an info that says that the archive has it already."""
        self.made[name] = self.new_value()
        label = save(self.stores[name], LABELLED, self.made[name], as_sent=as_sent)
        if as_sent:
            self.stores[name].update_label_info(LABELLED, "final", {"archived": label.revision})

    @rule(name=SERVERS)
    def an_annotator_saves_under_original(self, name: str) -> None:
        self.originals[name] = self.new_value()
        save(self.stores[name], LABELLED, self.originals[name], tag=ORIGINAL)

    @rule(name=SERVERS)
    def an_annotator_saves_while_a_new_final_is_looked_at(self, name: str) -> None:
        def saves(*_: Any) -> None:
            self.archive.before.clear()
            self.an_annotator_saves(name)

        self.another_program_stores_a_final()
        self.archive.before["retrieve_series_metadata"] = saves
        self.a_label_is_asked_for(name)
        self.archive.before.clear()

    @rule(name=SERVERS)
    def an_annotator_deletes(self, name: str) -> None:
        self.stores[name].remove_label(LABELLED, "final")
        self.made.pop(name, None)
        stored = {int(seg.pixel_array.sum()) for seg in self.archive.segs(LABELLED)}
        # A segmentation that this server has never seen is not its own annotator's to delete.
        known = self.stores[name]._known_segmentations(LABELLED)
        unseen = {int(s.pixel_array.sum()) for s in self.archive.segs(LABELLED) if s.SeriesInstanceUID not in known}
        own = {self._value_of(revision) for revision in self.stores[name].revisions(LABELLED, "final")}
        self.deleted[name] |= (stored - unseen) | own

    def _value_of(self, revision: Any) -> int:
        return int((nibabel.load(revision.path).get_fdata() > 0).sum())

    @rule(name=SERVERS)
    def labels_are_saved_that_the_archive_never_takes(self, name: str) -> None:
        for series in REFUSED:
            if series not in self.archive.held:
                self.archive.add(self.folder / "files", series)
        self.stores[name].refresh()
        for series in REFUSED:
            save(self.stores[name], series, 1)

    @rule(name=SERVERS)
    def the_arriving_series_is_labelled(self, name: str) -> None:
        store = self.stores[name]
        store.refresh()
        save(store, ARRIVING, 1)

    @rule(name=SERVERS)
    def a_training_takes_more_series_than_the_cache_holds(self, name: str) -> None:
        store = self.stores[name]
        for series in (OTHER, LABELLED):
            save(store, series, 1, tag="learnt")
        store._series._max_bytes, usual = 1, store._series._max_bytes
        self.series += 1
        pairs = store.datalist(tag="learnt", images=self.folder / f"images {self.series}")
        assert len(pairs) == 2
        assert all(Path(pair["image"]).exists() for pair in pairs), "an image was evicted"
        store._series._max_bytes = usual

    @rule(name=SERVERS)
    def a_label_is_asked_for(self, name: str) -> None:
        self.stores[name].labels(LABELLED)

    # The archive

    @rule()
    def another_program_stores_a_final(self) -> None:
        self.archive.put(self.twins.seg(LABELLED, mask(self.new_value()), made_by=MANUFACTURER, name="final 1"))

    @rule()
    def another_program_stores_a_segmentation(self) -> None:
        self.archive.put(self.twins.seg(LABELLED, mask(self.new_value())))

    @rule()
    def a_slice_arrives(self) -> None:
        self.archive.arrive(ARRIVING, 1)

    @rule(name=SERVERS, way=st.sampled_from(WAYS))
    def labels_are_sent(self, name: str, way: str) -> None:
        def store(series: str, dataset: Any) -> None:
            if series in REFUSED:
                raise http_error(403)
            if series == ARRIVING and len([*self.stores[name]._series.instances(ARRIVING).iterdir()]) != len(
                self.archive.held[ARRIVING]
            ):
                self.faults.append("a label of a part of a series was sent")
            if way == "refuses now":
                raise http_error(403)
            if way == "loses the answer":
                self.archive.before.clear()
                self.archive.store_instances([dataset])
            if way != "stores":
                raise requests.ConnectionError

        self.archive.before["store_instances"] = store
        self.stores[name]._sender.send_due()
        self.archive.before.clear()

    @rule(name=SERVERS)
    def a_new_series_is_looked_at_while_it_arrives(self, name: str) -> None:
        self.series += 1
        uid = f"1.2.3.9{self.series}"
        self.archive.add(self.folder / "files", uid, slices=1, shape=(5, 7, 20))
        self.archive.before["search_for_series"] = lambda *_: self.archive.arrive(uid, 1)
        self.stores[name].refresh()
        assert uid not in self.stores[name].image_ids()
        self.archive.before.clear()
        del self.archive.held[uid]

    @rule(name=SERVERS, way=st.sampled_from(LISTS))
    def a_list_is_wrong(self, name: str, way: str) -> None:
        def away(*_: Any) -> None:
            raise requests.ConnectionError

        def shifts(wanted: str, offset: int) -> None:
            if not wanted and offset:
                self.archive.held = {uid: files for uid, files in held.items() if uid != OTHER}

        held = self.archive.held
        if way in ("away", "shifts"):
            self.archive.before["search_for_series"] = away if way == "away" else shifts
        self.archive.empty, self.archive.unlisted = way == "empty", {LABELLED} if way == "short" else set()
        self.stores[name].refresh()
        assert LABELLED in self.stores[name].image_ids()
        self.archive.before.clear()
        self.archive.held = held
        self.archive.empty, self.archive.unlisted = False, set()
        self.stores[name].refresh()

    @rule(name=SERVERS)
    def the_labelled_series_is_away_for_a_while(self, name: str) -> None:
        store = self.stores[name]
        store.save_scores([ImageScore(image_id=LABELLED, run="r", ts=1.0, values={"u": 1.0}, feature=[1.0])])
        store.serve_next(LABELLED, "first", client_id=None, ts=1, holder="anna")
        self.archive.lost = {LABELLED}
        store.refresh()
        assert LABELLED not in store.image_ids()
        self.archive.lost = set()
        store.refresh()
        assert LABELLED in store.image_ids()
        assert LABELLED not in store.unscored("r", images="all")
        assert LABELLED in store.features([LABELLED])
        if LABELLED in store.unlabeled(limit=99, holder="anna"):
            assert store.serve_next(LABELLED, "first", client_id=None, ts=1, holder="ben") is None

    # Servers

    @rule(name=SERVERS)
    def the_arriving_series_is_opened_and_scored(self, name: str) -> None:
        store = self.stores[name]
        store.refresh()
        slices = len(self.archive.held[ARRIVING])
        assert slices_of(store.image(ARRIVING).path) == slices
        if self.scored.get(name) == slices:
            assert ARRIVING not in store.unscored("r")
        elif name in self.scored:
            assert ARRIVING in store.unscored("r")
        store.save_scores([ImageScore(image_id=ARRIVING, run="r", ts=1.0, values={"u": 1.0})])
        self.scored[name] = slices

    @rule(name=SERVERS)
    def a_server_starts_again(self, name: str) -> None:
        self.stores[name].close()
        self.stores[name] = self.twins.server(name)

    # What always holds

    @invariant()
    def the_last_save_of_an_annotator_stays_and_what_was_deleted_too(self) -> None:
        assert self.faults == []
        for name, value in self.originals.items():
            assert value_of(self.stores[name], LABELLED, ORIGINAL) == value
        for name, store in self.stores.items():
            try:
                value = value_of(store, LABELLED)
            except NotFound:
                assert name not in self.made
                continue
            if name in self.made:
                assert value == self.made[name]
            else:
                assert value in self.everywhere - self.deleted[name]
                assert store.revisions(LABELLED, "final")[-1].user == "archive"

    def all_is_sent_in_the_end(self) -> None:
        """Every final label that an annotator saved last gets into the archive."""
        for name, made in self.made.items():
            for _ in range(ROUNDS):
                self.labels_are_sent(name, "stores")
            assert made in {int(seg.pixel_array.sum()) for seg in self.archive.segs(LABELLED)}


Scene = Callable[[ArchiveMachine], None]


def slices_arrive_after_the_first_look(machine: ArchiveMachine) -> None:
    for _ in range(2):
        machine.the_arriving_series_is_opened_and_scored(name="a")
        machine.a_slice_arrives()
    machine.the_arriving_series_is_opened_and_scored(name="a")


def slices_arrive_during_a_look(machine: ArchiveMachine) -> None:
    machine.a_new_series_is_looked_at_while_it_arrives(name="a")


def slices_arrive_before_a_label_is_sent(machine: ArchiveMachine) -> None:
    machine.the_arriving_series_is_labelled(name="a")
    machine.a_slice_arrives()
    machine.labels_are_sent(name="a", way="stores")


def a_save_while_a_final_is_looked_at(machine: ArchiveMachine) -> None:
    machine.an_annotator_saves_while_a_new_final_is_looked_at(name="a")


def a_segmentation_after_a_save(machine: ArchiveMachine) -> None:
    machine.an_annotator_saves_under_original(name="a")
    machine.another_program_stores_a_segmentation()


def a_final_that_was_sent_and_deleted(machine: ArchiveMachine) -> None:
    machine.an_annotator_saves(name="a")
    machine.labels_are_sent(name="a", way="stores")
    machine.an_annotator_deletes(name="a")
    machine.a_server_starts_again(name="a")


def a_label_that_says_that_it_was_sent(machine: ArchiveMachine) -> None:
    machine.an_annotator_saves(name="a", as_sent=True)


def labels_that_cannot_be_sent(machine: ArchiveMachine) -> None:
    machine.labels_are_saved_that_the_archive_never_takes(name="a")
    machine.an_annotator_saves(name="a")


def wrong_lists(machine: ArchiveMachine) -> None:
    for way in LISTS:
        machine.a_list_is_wrong(name="a", way=way)


def a_series_that_comes_back(machine: ArchiveMachine) -> None:
    machine.the_labelled_series_is_away_for_a_while(name="a")


def a_training(machine: ArchiveMachine) -> None:
    machine.a_training_takes_more_series_than_the_cache_holds(name="a")


SCENES: tuple[Scene, ...] = (
    slices_arrive_after_the_first_look,
    slices_arrive_during_a_look,
    slices_arrive_before_a_label_is_sent,
    a_save_while_a_final_is_looked_at,
    a_segmentation_after_a_save,
    a_final_that_was_sent_and_deleted,
    a_label_that_says_that_it_was_sent,
    labels_that_cannot_be_sent,
    wrong_lists,
    a_series_that_comes_back,
    a_training,
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_what_went_wrong_once(scene: Scene) -> None:
    machine = ArchiveMachine("a")
    try:
        machine.open_all()
        scene(machine)
        machine.the_last_save_of_an_annotator_stays_and_what_was_deleted_too()
    finally:
        machine.teardown()


ODD = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
TestArchive = ArchiveMachine.TestCase
TestArchive.settings = settings(ODD, max_examples=2, stateful_step_count=15)


@pytest.mark.slow
class TestArchiveAtLength(ArchiveMachine.TestCase):  # type: ignore[misc]
    """The same for minutes."""

    settings = settings(ODD, max_examples=150, stateful_step_count=40, derandomize=False)
