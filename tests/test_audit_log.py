"""The audit log: append-only, chained, without patients' data, for many processes at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayapp.audit_log import START, AuditLog
from rayapp.cli import app


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    made = AuditLog.of(tmp_path)
    for number in range(5):
        made.append([{"user": "anna", "action": f"PUT /{number}", "outcome": 200, "image": made.pseudonym("ct_a")}])
    return made


def file_of(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "audit").glob("*.jsonl")
    return path


def test_records_are_kept_in_order_and_each_names_the_one_before(log: AuditLog, tmp_path: Path):
    records = list(log.records())
    assert [record["action"] for record in records] == [f"PUT /{number}" for number in range(5)]
    assert [record["previous"] for record in records] == [START, *(each["digest"] for each in records[:-1])]
    assert list(log.problems()) == []
    assert log.head() == records[-1]["digest"]
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "audit", file_of(tmp_path))} == {0}


def test_no_image_is_named_and_one_can_be_looked_for_all_the_same(log: AuditLog, tmp_path: Path):
    assert "ct_a" not in file_of(tmp_path).read_text()
    assert next(log.records())["image"] == AuditLog.of(tmp_path).pseudonym("ct_a")
    assert log.pseudonym("ct_a") != log.pseudonym("ct_b")
    assert AuditLog.of(tmp_path / "another").pseudonym("ct_a") != log.pseudonym("ct_a")


@pytest.mark.parametrize("line", range(5))
def test_every_change_of_a_record_is_found(log: AuditLog, tmp_path: Path, line: int):
    lines = file_of(tmp_path).read_text().splitlines()
    lines[line] = lines[line].replace("anna", "otto")
    file_of(tmp_path).write_text("\n".join(lines) + "\n")
    assert [f":{line + 1}:" in problem for problem in log.problems()] == [True]


@pytest.mark.parametrize("line", range(4))
def test_a_record_that_is_taken_out_is_missed(log: AuditLog, tmp_path: Path, line: int):
    lines = file_of(tmp_path).read_text().splitlines()
    del lines[line]
    file_of(tmp_path).write_text("\n".join(lines) + "\n")
    assert any("missing" in problem for problem in log.problems())


def test_a_log_that_was_cut_off_is_found_by_a_digest_noted_before(log: AuditLog, tmp_path: Path):
    head = log.head()
    lines = file_of(tmp_path).read_text().splitlines()
    file_of(tmp_path).write_text("\n".join(lines[:-1]) + "\n")
    assert list(log.problems()) == []
    assert any("cut off" in problem for problem in log.problems(head))


def test_half_a_line_of_a_crash_is_told_and_the_log_goes_on_behind_it(log: AuditLog, tmp_path: Path):
    with file_of(tmp_path).open("a") as file:
        file.write('{"number": 6, "act')
    log.append([{"action": "after"}])
    assert [record["action"] for record in log.records()][-1] == "after"
    (problem,) = log.problems()
    assert "half a line" in problem


def test_threads_and_processes_share_one_chain(tmp_path: Path):
    logs = [AuditLog.of(tmp_path) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda log=log: [log.append([{"action": "a"}, {"action": "b"}]) for _ in range(10)])
        for log in logs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record["number"] for record in logs[0].records()] == list(range(1, 81))
    assert list(logs[0].problems()) == []


def test_the_command_lists_filters_and_verifies(log: AuditLog, tmp_path: Path):
    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["audit", "--workspace", str(tmp_path), *words])
        return done.exit_code, done.output

    assert len(run()[1].splitlines()) == 5
    assert len(run("--image", "ct_a", "--action", "/3")[1].splitlines()) == 1
    assert run("--image", "ct_b") == (0, "")
    assert run("--user", "otto") == (0, "")
    assert len(run("--days", "1")[1].splitlines()) == 5
    assert json.loads(run("--json")[1].splitlines()[0])["action"] == "PUT /0"
    status, text = run("--verify")
    assert (status, log.head() in text) == (0, True)
    file_of(tmp_path).write_text(file_of(tmp_path).read_text().replace("anna", "otto"))
    assert run("--verify")[0] == 1
