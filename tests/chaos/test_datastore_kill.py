"""kill -9 of the process that holds the datastore, at random moments under eight savers: nothing acknowledged is lost.

Run as a program, this module is that process: it saves until it is killed, and writes a line after each answer it got.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rayapp.datastore import document
from rayapp.datastore.interfaces import Author, ClickEvent
from rayapp.datastore.local import LocalDatastore
from tests.waiting import until

ROOT, NAME = Path(__file__).parents[2], "tests.chaos.test_datastore_kill"
IMAGES = [f"image_{i:02}" for i in range(12)]
TAGS = ("final", "original", "version_1")
SAVERS = 8


def save_forever(store: LocalDatastore, saver: int, seed: int) -> None:
    """Save labels, infos and clicks; say each only once it was answered."""
    chance = random.Random(f"{seed}/{saver}")
    author = Author(user=f"user{saver}")
    for count in range(1_000_000):
        image_id, tag = chance.choice(IMAGES), chance.choice(TAGS)
        token = f"{seed}/{saver}/{count}"
        kind = chance.random()
        if kind < 0.7:
            ext = chance.choice((".nii.gz", ".nrrd"))
            staged = store.stage(ext)
            staged.write_bytes(chance.randbytes(chance.choice((10, 5_000, 200_000))))
            record = store.save_label(image_id, tag, staged, ext, info={"token": token}, author=author)
            answer = ["label", image_id, tag, record.revision, token]
        elif kind < 0.8:
            key = f"count_{seed}_{saver}"
            store.update_image_info(image_id, {key: count})
            answer = ["info", image_id, key, count]
        elif kind < 0.9:
            (seq,) = store.append_events([ClickEvent(image_id=image_id, kind="click", payload={"token": token})])
            answer = ["event", image_id, seq, token]
        else:
            store.remove_label(image_id, tag)
            continue
        os.write(1, json.dumps(answer).encode() + b"\n")


def run(studies: Path, seed: int) -> None:
    """The child: write the document as often as can be, so that kills meet it too."""
    document.DELAY_S = document.PATIENCE_S = 0.02
    store = LocalDatastore(studies, settle=0.01)
    os.write(1, b'["open"]\n')
    for saver in range(SAVERS):
        threading.Thread(target=save_forever, args=(store, saver, seed)).start()


def killed(studies: Path, log: Path, seed: int) -> list[list[Any]]:
    """One life of the child; what it was answered."""
    chance = random.Random(seed)
    with log.open("wb") as out:
        child = subprocess.Popen([sys.executable, "-m", NAME, str(studies), str(seed)], stdout=out, cwd=ROOT)
        try:
            if chance.random() < 0.8:  # at work; else perhaps while it opens
                until(lambda: log.stat().st_size or child.poll() is not None, every=0.005)
                time.sleep(chance.uniform(0, 0.5))
            else:
                time.sleep(chance.uniform(0.2, 1.0))
            assert child.poll() is None, "the child ended by itself"
        finally:
            child.kill()
            child.wait()
    lines = log.read_bytes().split(b"\n")[:-1]  # the last one may be cut
    return [answer for answer in map(json.loads, lines) if answer != ["open"]]


def check(studies: Path, answers: list[list[Any]]) -> None:
    """Everything answered is there; everything published is whole; the document is JSON before and after."""
    path = studies / document.NAME
    if path.exists():
        json.loads(path.read_bytes())
    store = LocalDatastore(studies, watch=False, settle=0)
    try:
        revisions = {(i, t): {r.info.get("token"): r for r in store.revisions(i, t)} for i in IMAGES for t in TAGS}
        events = {e.seq: e for image_id in IMAGES for e in store.events(image_id)}
        counts: dict[tuple[str, str], int] = {}
        for kind, image_id, *rest in answers:
            if kind == "label":
                tag, sha, token = rest
                revision = revisions[image_id, tag][token]
                assert revision.id == sha
                assert hashlib.sha256(revision.path.read_bytes()).hexdigest() == sha
            elif kind == "event":
                assert events[rest[0]].payload == {"token": rest[1]}
            else:
                counts[image_id, rest[0]] = max(counts.get((image_id, rest[0]), 0), rest[1])
        for (image_id, key), count in counts.items():
            assert store.image(image_id).info[key] >= count
        for image_id in IMAGES:
            for tag, label in store.labels(image_id).items():
                assert hashlib.sha256(label.path.read_bytes()).hexdigest() == label.revision
                newest = store.revisions(image_id, tag)[-1]
                assert (label.revision, label.info) == (newest.id, newest.info)
        published = {p.relative_to(studies / "labels") for p in (studies / "labels").glob("*/*")}
        assert published == {
            Path(tag) / (image_id + label.ext) for image_id in IMAGES for tag, label in store.labels(image_id).items()
        }
    finally:
        store.close()
    assert set(json.loads(path.read_bytes())["objects"]) == set(IMAGES)


def prove(studies: Path, log: Path, rounds: int, first_seed: int) -> None:
    studies.mkdir()
    for image_id in IMAGES:
        (studies / f"{image_id}.nii.gz").write_bytes(b"voxels")
    total = 0
    for seed in range(first_seed, first_seed + rounds):
        print(f"seed {seed}", flush=True)
        answers = killed(studies, log, seed)
        check(studies, answers)
        total += sum(answer[0] == "label" for answer in answers)
    print(f"{rounds} kills, {total} acknowledged saves, all there")
    assert total > rounds, "too few saves to prove anything"


def test_a_few_kills_lose_nothing_acknowledged(tmp_path: Path) -> None:
    prove(tmp_path / "studies", tmp_path / "log", 6, 1000)


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing_acknowledged(tmp_path: Path) -> None:
    prove(tmp_path / "studies", tmp_path / "log", 200, random.SystemRandom().randrange(1_000_000))


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
