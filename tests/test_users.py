"""rayapp.users."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from rayapp.errors import BadRequest, Conflict, NotFound, RayappError
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
