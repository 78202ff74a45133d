"""rayapp.users."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayapp.audit_log import AuditLog
from rayapp.cli import app
from rayapp.errors import BadRequest, Conflict, NotFound, NotSignedIn, RayappError
from rayapp.protocol import Role
from rayapp.users import User, UserStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "users.json"


def test_a_token_lets_its_user_in_with_the_role_given(path: Path) -> None:
    store = UserStore(path)
    anna, root = store.add("anna", Role.ANNOTATOR), store.add("root", Role.ADMIN)
    user = store.authenticate(anna)
    assert user is not None
    assert (user.name, user.role) == ("anna", Role.ANNOTATOR)
    assert store.authenticate(root).role is Role.ADMIN  # type: ignore[union-attr]


@pytest.mark.parametrize("token", ["", "wrong", "é", "\udc80"])
def test_no_other_token_lets_anybody_in(path: Path, token: str) -> None:
    store = UserStore(path)
    assert store.authenticate(token) is None
    good = store.add("anna", Role.USER)
    assert store.authenticate(token) is None
    assert store.authenticate(good[:-1]) is None
    assert store.authenticate(hashlib.sha256(good.encode()).hexdigest()) is None


def test_the_file_holds_no_token_and_only_its_owner_can_read_it(path: Path) -> None:
    token = UserStore(path).add("anna", Role.USER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    assert len(token) >= 43
    assert {entry.name for entry in path.parent.iterdir()} <= {"users.json", "users.json.lock"}


def test_what_one_process_adds_and_revokes_another_sees_at_once(path: Path) -> None:
    serving, console = UserStore(path), UserStore(path)
    assert serving.list() == []
    token = console.add("anna", Role.USER)
    assert serving.authenticate(token) == console.list()[0]
    console.revoke("anna")
    assert serving.authenticate(token) is None
    other = console.add("anna", Role.USER)
    assert serving.authenticate(token) is None
    assert serving.authenticate(other) is not None
    path.unlink()
    assert serving.authenticate(other) is None


def test_an_unchanged_file_is_not_parsed_again(path: Path) -> None:
    store = UserStore(path)
    token = store.add("anna", Role.USER)
    assert store.authenticate(token) is not None
    before, text = path.stat(), path.read_bytes()
    path.write_bytes(b"x" * len(text))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.authenticate(token) is not None


def test_a_name_is_taken_once_and_users_are_listed_by_name(path: Path) -> None:
    store = UserStore(path)
    store.add("bert", Role.REVIEWER)
    store.add("anna", Role.USER)
    with pytest.raises(Conflict, match="bert"):
        store.add("bert", Role.ADMIN)
    listed = store.list()
    assert [(user.name, user.role) for user in listed] == [("anna", Role.USER), ("bert", Role.REVIEWER)]
    assert all(user.created > 1_600_000_000 for user in listed)


def test_bad_names_and_unknown_users_are_refused(path: Path) -> None:
    store = UserStore(path)
    with pytest.raises(BadRequest):
        store.add("../anna", Role.USER)
    with pytest.raises(NotFound, match="anna"):
        store.revoke("anna")


@pytest.mark.parametrize(
    "text", ["{", "[]", "[1]", '{"anna": {}}', '{"anna": {"role": "king", "sha256": "", "created": 1}}']
)
def test_nobody_comes_in_on_a_damaged_file(path: Path, text: str) -> None:
    store = UserStore(path)
    token = store.add("anna", Role.USER)
    path.write_text(text)
    for call in (lambda: store.authenticate(token), store.list, lambda: store.add("bert", Role.USER)):
        with pytest.raises(RayappError, match="corrupt"):
            call()
    assert path.read_text() == text


def test_users_added_at_the_same_time_are_all_kept(path: Path) -> None:
    threads = [threading.Thread(target=UserStore(path).add, args=(f"user{n}", Role.USER)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(UserStore(path).list()) == 12


def test_the_user_of_a_server_without_authentication_needs_no_store() -> None:
    assert User(name="admin", role=Role.ADMIN).role.reaches(Role.REVIEWER)


def test_a_token_ends_with_its_days(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = UserStore(path), time.time()
    token, lasting = store.add("anna", Role.USER, days=2), store.add("otto", Role.USER)
    assert [user.expires is None for user in store.list()] == [False, True]
    for passed, valid in ((1.99, True), (2.01, False)):
        monkeypatch.setattr(time, "time", lambda passed=passed: now + passed * 86_400)
        assert (store.authenticate(token) is not None) is valid
        assert store.authenticate(lasting) is not None
    assert store.rotate("anna") != token
    with pytest.raises(NotSignedIn):
        store.sign_in("anna", token)


def test_a_rotated_token_ends_at_once_or_after_the_hours_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = UserStore(path), time.time()
    first = store.add("anna", Role.REVIEWER, days=30)
    second = store.rotate("anna")
    assert store.authenticate(first) is None
    third = store.rotate("anna", days=90, overlap=24)
    for passed, valid in ((23.9, True), (24.1, False)):
        monkeypatch.setattr(time, "time", lambda passed=passed: now + passed * 3600)
        assert (store.authenticate(second) is not None) is valid
        assert store.authenticate(third).role is Role.REVIEWER  # type: ignore[union-attr]
    store.rotate("anna", overlap=24)
    assert store.authenticate(second) is None, "only one old token is valid, the one before"
    with pytest.raises(NotFound):
        store.rotate("nobody")


def test_an_overlap_makes_no_token_valid_for_longer_than_its_days(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = UserStore(path), time.time()
    first = store.add("anna", Role.USER, days=1)
    store.rotate("anna", overlap=100)
    monkeypatch.setattr(time, "time", lambda: now + 1.1 * 86_400)
    assert store.authenticate(first) is None


def test_one_signs_in_by_name_and_token_only_as_oneself(path: Path) -> None:
    store = UserStore(path)
    anna = store.add("anna", Role.USER)
    store.add("otto", Role.USER)
    assert store.sign_in("anna", anna) == anna
    for name, password in (("otto", anna), ("anna", "wrong"), ("", "")):
        with pytest.raises(NotSignedIn):
            store.sign_in(name, password)


def test_the_commands_add_rotate_and_revoke_and_are_recorded(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["users", *words, "--workspace", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.output.strip()

    store = UserStore.of(tmp_path)
    first = run("add", "anna", "--role", "user", "--days", "30")
    assert store.authenticate(first) is not None
    second = run("rotate", "anna", "--overlap", "1", "--days", "30")
    assert store.authenticate(first) == store.authenticate(second) != None  # noqa: E711
    assert "anna" in run("list")
    run("revoke", "anna")
    assert store.authenticate(second) is None
    records = list(AuditLog.of(tmp_path).records())
    assert [each["action"] for each in records] == ["users add --role user", "users rotate", "users revoke"]
    assert {each["subject"] for each in records} == {"anna"}
    assert first not in (tmp_path / "audit").rglob("*.jsonl").__next__().read_text()
