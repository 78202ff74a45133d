"""StoreMachine: saves, removals, other programs, scans, document edits, openings and crashes in any order."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rayapp.datastore import document, studies_folder
from rayapp.datastore.document import DocumentFile
from rayapp.datastore.interfaces import Author, ClickEvent, ImageScore
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import Busy, Conflict, NotFound
from tests.datastore.stepped_commit import SteppedCommit, Work
from tests.datastore.store_model import ANYTHING, Key, Model, Pending
from tests.memory_folder import memory_folder

IMAGES, TAGS, EXTS = ("ct_a", "ct_b"), ("final", "second"), (".nii.gz", ".nrrd")
USERS = ("ann", "ben")
IMAGE = st.sampled_from(IMAGES)
KEYS = st.tuples(IMAGE, st.sampled_from(TAGS))
Save = tuple[Key, str, str]
"""Key, name of the staged file and extension of a save."""


class StoreMachine(RuleBasedStateMachine):
    """One folder, our store on it, and another program that edits labels and the document."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(studies_folder, "GroupCommit", SteppedCommit)
        self.patch.setattr(DocumentFile, "start", lambda _: None)  # a rule writes it
        self.root = memory_folder()
        self.model = Model()
        self.pending: list[Pending] = []
        self.bodies = self.crashes = self.clock = 0
        self.theirs: dict[str, Any] | None = None
        self.saves: list[Save] = []

    def teardown(self) -> None:
        try:
            if self.bodies:
                self.all_is_quiet()
                self.store.close()
        finally:
            self.patch.undo()
            for each in self.pending:
                if each.work.change is not None:  # it is none when the step that ended it has failed
                    each.work.change.answer.cancel()
            shutil.rmtree(self.root, ignore_errors=True)

    @initialize()
    def open_the_folder(self) -> None:
        self.studies = self.root / "0"
        self.studies.mkdir()
        for image in IMAGES:
            (self.studies / f"{image}.nii.gz").write_bytes(b"voxels of " + image.encode())
        self.start()

    def start(self) -> None:
        self.store = LocalDatastore(self.studies, watch=False, settle=0.0)

    @property
    def commit(self) -> SteppedCommit:
        commit = self.store._commit
        assert isinstance(commit, SteppedCommit)
        return commit

    def body(self) -> bytes:
        self.bodies += 1
        return b"%d" % self.bodies * (1 + self.bodies % 3)

    def begin(self, what: str, work: Callable[[], Any], committed: Callable[[Exception | None, Any], None]) -> None:
        """Begin a call; it stands still before its commit."""
        begun = Work(work)
        if begun.change is None:  # refused at once
            committed(begun.error, None)  # type: ignore[arg-type]
        else:
            self.pending.append(Pending(begun, what, committed))

    def has_image(self, image: str) -> bool:
        return (self.studies / f"{image}.nii.gz").exists()

    # Annotators

    @rule(
        key=KEYS, user=st.sampled_from(USERS), ext=st.sampled_from(EXTS), conditional=st.booleans(), old=st.booleans()
    )
    def an_annotator_saves(self, key: Key, user: str, ext: str, conditional: bool, old: bool) -> None:
        """A save, perhaps of a content that was there before, or only if nobody has saved meanwhile."""
        before = sorted(body for *at, body, _ in self.model.required if tuple(at) == key)
        body = before[0] if old and before else self.body()
        staged = self.store.stage(ext)
        staged.write_bytes(body)
        expected, seen, clean = None, self.model.changes[key], key not in self.model.unseen
        if conditional:
            try:
                expected = self.store.label(*key).number
            except NotFound:
                expected = 0

        def save() -> Any:
            return self.store.save_label(
                *key, staged, ext, info={"m": 1}, author=Author(user=user), model_version=f"v{user}", expected=expected
            )

        kept = hashlib.sha256(body).hexdigest() + ext

        def committed(error: Exception | None, _: Any) -> None:
            if isinstance(error, NotFound):
                assert not self.has_image(key[0])
                return
            if isinstance(error, Conflict):
                assert expected is not None
                assert not (clean and seen == self.model.changes[key]), "refused though nobody has saved"
                return
            assert error is None, error
            gone = self.model.current[key] is None and (expected == 0 or key in self.model.deleted)
            untouched = seen == self.model.changes[key] or gone
            assert expected is None or untouched, "somebody's change was replaced"
            self.model.notice(key)
            self.model.current[key] = body
            self.model.changes[key] += 1
            self.model.notes[key] = None
            self.model.required.add((*key, body, user))
            self.model.possible.add((*key, body, user))
            self.model.spoiled.discard(key)
            self.model.damaged.discard(kept)
            self.model.ours.add(key)
            self.saves.append((key, staged.name, ext))

        self.begin(f"save {key} {body!r}", save, committed)

    @precondition(lambda self: self.saves)
    @rule(data=st.data())
    def a_save_is_repeated(self, data: st.DataObject) -> None:
        """Its answer was lost; somebody may have saved since."""
        self.repeat(data.draw(st.sampled_from(self.saves)))

    def repeat(self, done: Save) -> None:
        key, staged, ext = done
        if self.has_image(key[0]) and self.model.current[key] is not None and self.indexed(key):
            before = len(self.store.revisions(*key))
            self.store.save_label(*key, self.store.staging() / staged, ext, info={}, author=Author(user="ann"))
            assert len(self.store.revisions(*key)) == before, "it is saved twice"

    @rule(key=KEYS, conditional=st.booleans())
    def an_annotator_removes(self, key: Key, conditional: bool) -> None:
        """A removal, perhaps only if nobody has saved meanwhile."""
        if self.scanning():
            return
        expected, seen = None, self.model.changes[key]
        if conditional and self.indexed(key):
            expected = self.store.label(*key).number

        def committed(error: Exception | None, doomed: Any) -> None:
            if isinstance(error, Conflict):
                assert expected is not None
                return
            assert error is None, error
            if doomed:
                assert expected is None or seen == self.model.changes[key], "somebody's change was removed"
                self.model.notice(key)
                self.model.changes[key] += 1
                self.model.current[key] = None
                self.model.spoiled.discard(key)
                self.model.ours.discard(key)

        self.begin(f"remove {key}", lambda: self.store.remove_label(*key, expected=expected), committed)

    def indexed(self, key: Key) -> bool:
        try:
            self.store.label(*key)
        except NotFound:
            return False
        return True

    @rule(key=KEYS, missing=st.booleans())
    def a_revision_that_is_not_the_newest_is_lost(self, key: Key, missing: bool) -> None:
        """The disk damages its file."""
        files = {revision.path for revision in self.store.revisions(*key)[:-1]}
        newest = {self.store.revisions(*each)[-1].path for each in self.labelled()}
        for path in sorted(path for path in files - newest if path.name not in self.model.damaged)[:1]:
            if not self.pending:
                self.damage(path, missing)

    def damage(self, path: Path, missing: bool) -> None:
        self.model.damaged.add(path.name)
        if missing:
            path.unlink()
        else:
            path.chmod(0o644)
            path.write_bytes(b"damaged")

    def labelled(self) -> list[Key]:
        return [(image, tag) for image in IMAGES for tag in TAGS if self.store.revisions(image, tag)]

    # Images

    @rule(image=IMAGE, added=st.booleans())
    def an_image_gives_its_name_to_another_patients(self, image: str, added: bool) -> None:
        """It is removed, and another one is added here, or copied into the folder by another program."""
        if self.pending or not self.has_image(image):
            return
        self.store.append_events([ClickEvent(image_id=image, kind="click", payload={})])
        keys = [(image, tag) for tag in TAGS]
        for key in keys:
            self.model.notice(key)
        self.store.remove_image(image)
        assert not list((self.studies / "labels").glob(f"*/{image}.*"))
        assert image not in self.store.image_ids()
        files = {path for key in keys for path in (revision.path for revision in self.store.revisions(*key))}
        assert {body for *key, body, _ in self.model.required if tuple(key) in keys and not self.is_damaged(body)} <= {
            path.read_bytes() for path in files if path.name not in self.model.damaged
        }
        body = b"voxels of another patient " + self.body()
        if added:
            staged = self.store.stage(".nii.gz")
            staged.write_bytes(body)
            self.store.add_image(image, staged, ".nii.gz", info={}, author=Author(user="ann"))
        else:
            (self.studies / f"{image}.nii.gz").write_bytes(body)
            self.store.refresh()
        assert self.store.image(image).path.read_bytes() == body
        assert self.store.events(image) == []
        self.model.forget(image, keys)
        self.saves = [each for each in self.saves if each[0] not in keys]
        self.theirs = None

    @rule(image=IMAGE)
    def an_image_is_replaced_by_another_program(self, image: str) -> None:
        if self.pending or not self.has_image(image):
            return
        known = set(self.store.labels(image))
        self.store.save_scores([ImageScore(image_id=image, run="r", ts=1.0, values={"u": 1.0})])
        self.store.serve_next(image, "first", client_id=None, ts=1, holder="ann")
        (self.studies / f"{image}.nii.gz").write_bytes(b"another image " + self.body())
        self.store.refresh()
        for key in [key for key in self.model.unseen if key[0] == image]:
            self.model.notice(key)
        assert image in self.store.unscored("r", images="all")
        assert self.store.serve_next(image, "first", client_id=None, ts=1, holder="ben") is not None
        for label in self.store.labels(image).values():
            assert "image_replaced" in label.info or label.tag not in known

    @rule(image=IMAGE, number=st.integers(0, 99))
    def a_note_is_made(self, image: str, number: int) -> None:
        if self.store.image_ids(after=None).count(image):
            self.store.update_image_info(image, {"note": number})
            self.model.notes[image] = number

    @rule(key=KEYS, number=st.integers(0, 99))
    def a_note_on_a_label_is_made(self, key: Key, number: int) -> None:
        if self.indexed(key):
            self.store.update_label_info(*key, {"note": number})
            self.model.notes[key] = number

    # Another program

    def file_of(self, key: Key) -> Path:
        """The label's file that is there, else the one that the other program would write."""
        paths = [self.studies / "labels" / key[1] / (key[0] + ext) for ext in EXTS]
        return next((path for path in paths if path.exists()), paths[0])

    @rule(key=KEYS, in_place=st.booleans())
    def another_program_writes_a_label(self, key: Key, in_place: bool) -> None:
        path, body = self.file_of(key), self.body()
        path.parent.mkdir(exist_ok=True)
        fresh = path if in_place else path.with_name(".fresh")
        fresh.write_bytes(body)
        self.clock += 1
        os.utime(fresh, ns=(self.clock * 10**9, self.clock * 10**9))
        fresh.replace(path)
        self.model.current[key] = self.model.unseen[key] = body
        self.model.ours.discard(key)
        self.model.possible.add((*key, body, "folder"))
        self.model.changes[key] += 1
        self.model.notes[key] = ANYTHING

    @rule(key=KEYS, seen=st.booleans())
    def another_program_deletes_a_label(self, key: Key, seen: bool) -> None:
        """A deletion counts once a scan has seen it: until then a crash may bring the label back."""
        path = self.file_of(key)
        if path.exists() and not self.scanning():
            path.unlink()
            self.model.unseen.pop(key, None)
            self.model.current[key] = None
            self.model.changes[key] += 1
            self.model.notes[key] = ANYTHING
            self.model.deleted.add(key)
            self.model.ours.discard(key)
            if seen:
                self.store.refresh()

    @rule(key=KEYS)
    def another_program_touches_a_label(self, key: Key) -> None:
        path = self.file_of(key)
        if path.exists():
            self.clock += 1
            os.utime(path, ns=(self.clock * 10**9, self.clock * 10**9))

    @rule(image=IMAGE)
    def an_image_is_away_for_a_while(self, image: str) -> None:
        path = self.studies / f"{image}.nii.gz"
        if not self.scanning() and not self.pending:
            path.rename(self.root / "away")
            self.store.refresh()
            assert image not in self.store.image_ids()
            (self.root / "away").rename(path)
            self.store.refresh()
            assert image in self.store.image_ids()

    # The document

    @rule()
    def another_program_reads_the_document(self) -> None:
        path = self.studies / document.NAME
        if path.exists():
            self.theirs = json.loads(path.read_bytes())

    def edit_document(self, image: str) -> None:
        """Another program changes one info in the document as it read it, and writes it, if it gets the lock.

        Each change has a number of its own: one back to the very document that was there before counts as none.
        """
        number = self.bodies = self.bodies + 1
        if self.theirs is None or image not in self.theirs["objects"]:
            return
        lock = FileLock(self.studies / ".lock", timeout=0)
        try:
            with lock:
                self.theirs["objects"][image]["image"]["info"]["mark"] = number
                (self.studies / document.NAME).write_text(json.dumps(self.theirs))
                self.model.marks[image] = number
        except Timeout:
            pass

    @rule(image=IMAGE)
    def another_program_writes_the_document(self, image: str) -> None:
        self.edit_document(image)

    @rule()
    def the_document_is_written(self) -> None:
        if not self.scanning():
            self.flush()

    def flush(self) -> None:
        self.store._document.flush()

    @rule(image=IMAGE, where=st.sampled_from(["_write", "_remember", "_keep_base"]))
    def the_document_is_written_while_another_program_writes_it(self, image: str, where: str) -> None:
        if self.scanning():
            return
        patch = pytest.MonkeyPatch()
        done: list[int] = []

        def once() -> None:
            if not done:
                done.append(1)
                self.edit_document(image)

        def before(real: Callable[..., Any], *args: Any) -> Any:
            once()
            return real(*args)

        real = getattr(self.store._document, where)
        try:
            patch.setattr(self.store._document, where, lambda *args: before(real, *args))
            self.flush()
        except Busy:
            pass  # it is written later
        finally:
            patch.undo()

    # The writer

    def scanning(self) -> bool:
        return any(each.what == "scan" for each in self.pending)

    @rule()
    def a_scan_begins(self) -> None:
        if not self.scanning():
            self.begin("scan", self.store.refresh, lambda *_: None)

    def batch(self, data: st.DataObject) -> list[Pending]:
        order = data.draw(st.permutations(range(len(self.pending))))
        return [self.pending[place] for place in order[: data.draw(st.integers(1, len(self.pending)))]]

    def told(self, batch: list[Pending], changes: list[Any]) -> None:
        for each, change in zip(batch, changes, strict=True):
            if each.steps == 0:
                each.committed(change.error, change.result)
            each.steps += 1

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def a_batch_is_committed(self, data: st.DataObject) -> None:
        self.commit_batch(self.batch(data))

    def commit_batch(self, batch: list[Pending]) -> None:
        self.told(batch, self.commit.step([each.work for each in batch]))
        self.pending = [each for each in self.pending if each.work.change is not None]
        for key in self.model.ours - self.model.spoiled:
            assert self.indexed(key), "an acknowledged label is not there"

    @rule(data=st.data(), edited=st.lists(KEYS, max_size=2), lost=st.booleans())
    def the_process_crashes_and_starts_again(self, data: st.DataObject, edited: list[Key], lost: bool) -> None:
        """Before a commit, or within one: after so many of its changes were published."""
        batch, published = [], 0
        if self.pending and data.draw(st.booleans()):
            batch = self.batch(data)
            published = data.draw(st.integers(0, len(batch)))
        self.crash(batch, published, edited, lost)

    def crash(self, batch: list[Pending], published: int = 0, edited: list[Key] = [], lost: bool = False) -> None:  # noqa: B006
        """End the process in the middle of a batch, and start another one.

        Args:
            batch: is committed.
            published: number of its changes that are published.
            edited: labels that another program writes meanwhile.
            lost: the disk loses the newest revision of a label that was committed and is not published.
        """
        if batch:
            self.told(batch, self.commit.step([each.work for each in batch], published=published))
        self.crashes += 1
        left = self.root / f"{self.crashes}"
        subprocess.run(["cp", "-a", self.studies, left], check=True)
        for each in self.pending:
            while (change := each.work.change) is not None:
                if not change.answer.done():
                    change.answer.set_exception(KeyboardInterrupt())
                each.work.go_on()
        self.pending = []
        self.store.close()
        shutil.rmtree(self.studies)
        self.studies = left
        if lost:
            self.lose_what_is_not_published()
        for key in edited:
            self.another_program_writes_a_label(key, in_place=False)
        self.start()
        for key in self.model.spoiled:
            self.store.labels(key[0])
            self.store.revisions(*key)
        for key in self.model.deleted - self.model.unseen.keys():
            if self.indexed(key) and self.model.current[key] is None:
                self.model.current[key] = self.store.label(*key).path.read_bytes()

    def lose_what_is_not_published(self) -> None:
        with closing(sqlite3.connect(self.studies / ".rayapp" / "index.db")) as db:
            rows = db.execute("SELECT image_id, tag, sha, ext FROM label").fetchall()
        for image, tag, sha, ext in rows:
            published = self.studies / "labels" / tag / (image + ext)
            path = self.studies / ".rayapp" / "revisions" / sha[:2] / (sha + ext)
            if path.exists() and not (published.exists() and published.read_bytes() == path.read_bytes()):
                self.damage(path, missing=True)
                self.model.spoiled.add((image, tag))

    @rule()
    def it_is_closed_and_opened_again(self) -> None:
        self.all_is_quiet()
        self.store.close()
        self.start()
        self.all_is_quiet()

    def is_damaged(self, body: bytes) -> bool:
        """True if a file with this content is damaged, whatever its format."""
        return any(name.startswith(hashlib.sha256(body).hexdigest()) for name in self.model.damaged)

    @rule()
    def all_is_quiet(self) -> None:
        """Nothing is pending and a scan has seen everything: then the folder is what the model says."""
        while self.pending:
            self.commit_batch(self.pending)
        self.store.refresh()
        for key in list(self.model.unseen):
            self.model.notice(key)
        self.model.deleted.clear()
        self.flush()
        assert json.loads((self.studies / document.NAME).read_bytes()) == self.store.document()
        revisions = {
            (image, tag, revision.path.read_bytes(), revision.user)
            for image in IMAGES
            for tag in TAGS
            for revision in self.store.revisions(image, tag)
            if revision.path.name not in self.model.damaged
        }
        required = {each for each in self.model.required if not self.is_damaged(each[2])}
        assert required <= revisions, "a content that was published or acknowledged is lost"
        assert revisions <= self.model.possible, "a revision has another author than who made it"
        for image in IMAGES:
            labels = self.store.labels(image)
            info = self.store.image(image).info
            assert info.get("note") == self.model.notes[image]
            assert info.get("mark") == self.model.marks[image]
            for tag in TAGS:
                key, content = (image, tag), self.model.current[image, tag]
                if key in self.model.spoiled:
                    continue
                files = [file.read_bytes() for file in (self.studies / "labels").glob(f"{tag}/{image}.*")]
                assert files == ([] if content is None else [content])
                if content is None:
                    assert tag not in labels
                    continue
                assert labels[tag].path.read_bytes() == content
                newest = self.store.revisions(*key)[labels[tag].number - 1]
                assert newest.path.read_bytes() == content
                assert newest.model_version == (None if newest.user == "folder" else f"v{newest.user}")
                if self.model.notes[key] is not ANYTHING:
                    assert labels[tag].info.get("note") == self.model.notes[key]
