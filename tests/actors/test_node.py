"""What an embedded node leaves on the machine for others: nothing that they could use."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.node import _certificate, make_token, token_file
from rayapp.config import Settings
from tests.certificates import self_signed


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_rays_token_is_made_for_this_user_alone(home: Path) -> None:
    make_token()
    token = token_file().read_text()
    assert (token_file(), token_file().stat().st_mode & 0o777) == (home / ".ray" / "auth_token", 0o600)
    assert len(token) == 64
    make_token()
    assert token_file().read_text() == token


def test_a_token_that_others_could_read_is_closed_to_them(home: Path) -> None:
    (home / ".ray").mkdir()
    token_file().write_text("x" * 64)
    token_file().chmod(0o644)
    make_token()
    assert (token_file().read_text(), token_file().stat().st_mode & 0o777) == ("x" * 64, 0o600)


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "y" * 64)])
def test_who_brings_a_token_or_wants_none_is_made_none(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    make_token()
    assert not token_file().exists()


def test_certificate_and_key_are_joined_for_this_user_alone(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    settings = Settings(studies=tmp_path, auth="token", tls_cert=certificate, tls_key=key)
    both = _certificate(settings, tmp_path)
    assert both is not None
    assert both.stat().st_mode & 0o777 == 0o600
    assert both.read_text() == certificate.read_text() + key.read_text()
