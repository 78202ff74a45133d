"""The tables of `rayapp jobs` and `rayapp models list` fit a terminal of 80 columns, one line a row."""

from __future__ import annotations

import io

from rich.console import Console

from rayapp.commands import jobs, models
from rayapp.commands.jobs import _full_id

PROGRESS = {
    "epoch": 13,
    "epochs": 120,
    "iteration": 812,
    "iterations": 12_000,
    "loss": 0.4321,
    "metric": 0.8123,
    "best": 0.8345,
    "seconds_left": 4321.0,
}
IMAGES = {**PROGRESS, "loss": None, "metric": None, "best": None, "iteration": 12_345, "iterations": 100_000}


def job(number, kind, name, progress=None, status="RUNNING"):
    return {
        "id": f"{number:08x}-6f2c-494d-99c8-4fd0c0781da2",
        "kind": kind,
        "name": name,
        "status": status,
        "progress": progress,
    }


def printed(table):
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().rstrip("\n").split("\n")


def test_jobs_have_a_line_each_and_say_how_far_they_are():
    found = [
        job(1, "train", "deepgrow_3d", PROGRESS),
        job(2, "train", "segmentation", None, "SUBMITTED"),
        job(3, "batch_infer", "segmentation", IMAGES),
        job(4, "scoring", "epistemic", None, "ERROR"),
    ]
    lines = printed(jobs.table_of(found))
    assert len(lines) == 1 + len(found)
    assert lines[1].split()[:4] == ["00000001", "train", "deepgrow_3d", "RUNNING"]
    assert lines[1].rstrip().endswith("epoch 13/120, best 0.8345, 72 min left")
    assert lines[3].rstrip().endswith("12345 of 100000, 72 min left")


def test_ids_are_as_long_as_it_takes_to_tell_them_apart_and_their_beginning_names_them():
    found = [job(1, "train", "a"), job(1, "train", "b")]
    found[1]["id"] = found[0]["id"].replace("6f2c", "6f2d")
    lines = printed(jobs.table_of(found))
    shown = [line.split()[0] for line in lines[1:]]
    assert shown == ["00000001-6f2c", "00000001-6f2d"]
    assert [_full_id(each, found) for each in shown] == [each["id"] for each in found]
    assert _full_id("00000001", found) == "00000001"
    assert _full_id("nothing", found) == "nothing"


def test_versions_have_a_line_each_and_below_the_reasons_of_those_that_were_kept():
    why = "kept and not promoted: it scores worse, 0.7012 against 0.8123 of v12 on the same validation images"
    versions = [
        {"version": "v1", "created": 1.7e9},
        {"version": "v12", "created": 1.7e9, "parent": "v11", "verdict": {
         "promoted": True, "why": "promoted to production", "metric": 0.8123, "baseline": 0.8}},
        {"version": "v13", "created": 1.7e9, "parent": "v12", "verdict": {"promoted": False, "why": why,
         "metric": 0.7012, "baseline": 0.8123}},
        {"version": "v14", "created": 1.7e9, "uploaded_by": "anna"},
    ]  # fmt: skip
    found = {"segmentation": {"production": "v12", "versions": versions}, "deepgrow_3d": {"production": None,
             "versions": versions[:1]}}  # fmt: skip
    lines = printed(models.table_of(found))
    assert len(lines) == 6
    assert lines[2].split()[:3] == ["segmentation", "v12", "*"]
    assert lines[2].split()[-3:] == ["v11", "0.8123", "0.8000"]
    assert lines[3].split()[-3:] == ["0.7012", "0.8123", "kept"]
    assert lines[4].rstrip().endswith("by anna")
    assert models.not_promoted(found) == [f"v13 of segmentation: {why}"]


def test_a_version_is_described_by_what_its_card_knows():
    card = {
        "version": "v3",
        "description": "Organs of the torso",
        "trained": {"epochs": 4, "iterations": 2000, "seconds": 311, "from": None},
        "data": {"training": 7, "validation": 3, "hash": "SHA256:abc"},
        "metrics": {"dice": {"mean": 0.8, "liver": 0.9, "spleen": 0.7}},
        "compared": {"difference": 0.0123, "low": -0.004, "high": 0.03, "images": 3},
        "verdict": {"promoted": True, "why": "promoted to production: 0.8 against 0.79"},
    }
    assert models.described(card) == [
        "v3",
        "  description: Organs of the torso",
        "  trained: epochs 4, iterations 2000, seconds 311",
        "  images: training 7, validation 3",
        "  verdict: promoted to production: 0.8 against 0.79",
        "  dice: mean 0.800, liver 0.900, spleen 0.700",
        "  against the version before: Dice +0.012 (95 % interval -0.004 to +0.030, 3 images)",
    ]
    assert models.described({"version": "v1"}) == ["v1"]
