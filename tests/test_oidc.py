"""Tokens of an OpenID Connect provider: who they let in, and everything that must let nobody in."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

from rayapp import oidc
from rayapp.config import Oidc, Settings
from rayapp.errors import Busy, NotSignedIn
from rayapp.oidc import OidcUsers
from rayapp.protocol import Role
from rayapp.users import UserStore
from tests.provider import Provider, provider


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with provider() as made:
        yield made


@pytest.fixture
def users(running: Provider, tmp_path: Path) -> OidcUsers:
    return users_of(running, tmp_path)


def users_of(running: Provider, tmp_path: Path, **given: Any) -> OidcUsers:
    return OidcUsers(Oidc(issuer=running.front.url, **given), UserStore.of(tmp_path))


def test_a_good_token_lets_its_user_in_with_the_highest_role(running: Provider, users: OidcUsers):
    user = users.authenticate(running.token(roles=["user", "reviewer", "offline_access"]))
    assert user is not None
    assert (user.name, user.role) == ("anna", Role.REVIEWER)


NOW = time.time()
BAD: dict[str, dict[str, Any]] = {
    "expired": {"exp": int(NOW) - 61},
    "without an end": {"exp": None},
    "not valid yet": {"nbf": int(NOW) + 10**7},
    "of another issuer": {"iss": "https://evil.example"},
    "of no issuer": {"iss": None},
    "for another service": {"aud": "another"},
    "for no service": {"aud": None},
    "without a role": {"roles": None},
    "with unknown roles": {"roles": ["root", "ADMIN"]},
    "with roles of another shape": {"roles": {"admin": True}},
    "without a name": {"preferred_username": None, "sub": None},
    "with a name of another shape": {"preferred_username": ["anna"]},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_token_with_wrong_claims_lets_nobody_in(running: Provider, users: OidcUsers, kind: str):
    assert users.authenticate(running.token(**BAD[kind])) is None
    assert users.authenticate(running.token()) is not None


def test_clocks_may_differ_by_the_leeway(running: Provider, users: OidcUsers, tmp_path: Path):
    late = running.token(exp=int(time.time()) - 30)
    assert users.authenticate(late) is not None
    assert users_of(running, tmp_path, leeway=0).authenticate(late) is None


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "HS256", "RS256x"])
def test_unsigned_tokens_let_nobody_in(running: Provider, users: OidcUsers, alg: str):
    signature = running.token().rpartition(".")[2]
    for end in ("", signature):
        token = f"{encoded({'alg': alg, 'typ': 'JWT', 'kid': 'first'})}.{encoded(running.claims())}.{end}"
        assert users.authenticate(token) is None


def test_the_public_key_is_no_secret_to_sign_with(running: Provider, users: OidcUsers):
    """The confusion of algorithms: an HMAC whose secret is the public key."""
    public = running.keys["first"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head, body = encoded({"alg": "HS256", "kid": "first"}), encoded(running.claims())
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signed = base64.urlsafe_b64encode(signature.sign(f"{head}.{body}".encode(), pem)).rstrip(b"=").decode()
    assert users.authenticate(f"{head}.{body}.{signed}") is None


def test_changed_tokens_and_those_of_strangers_let_nobody_in(running: Provider, users: OidcUsers, tmp_path: Path):
    head, _, signature = running.token().split(".")
    assert users.authenticate(f"{head}.{encoded(running.claims(roles=['admin']))}.{signature}") is None
    with provider() as stranger:
        forged = jwt.encode(running.claims(), stranger.keys["first"], "RS256", headers={"kid": "first"})
        assert users.authenticate(forged) is None
    for text in ("..", "a.b.c", "", "é.é.é", f"{head}.{head}.{signature}"):
        assert users.authenticate(text) is None


def test_new_keys_of_the_provider_are_found_but_nobody_can_have_it_asked_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with provider() as running:
        users = users_of(running, tmp_path)
        assert users.authenticate(running.token()) is not None
        running.new_key("second")
        for _ in range(20):
            assert users.authenticate(running.token(number="second")) is None
        assert len(running.front.paths("/keys")) == 1
        monkeypatch.setattr(oidc, "RETRY_S", 0.0)
        assert users.authenticate(running.token(number="second")) is not None
        assert len(running.front.paths("/keys")) == 2


def test_a_provider_that_is_away_is_not_asked_by_everybody(tmp_path: Path):
    with provider() as running:
        running.front.way = "500"
        users = users_of(running, tmp_path)
        for _ in range(5):
            with pytest.raises(Busy):
                users.authenticate(running.token())
        assert len(running.front.asked) == 1


def test_old_keys_count_while_the_provider_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with provider() as running:
        users = users_of(running, tmp_path)
        assert users.authenticate(running.token()) is not None
        monkeypatch.setattr(oidc, "FRESH_S", 0.0)
        running.front.way = "500"
        assert users.authenticate(running.token()) is not None


def test_a_provider_that_is_away_or_another_one_is_told_as_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oidc, "PAUSE_S", 0.0)
    with provider() as running:
        users, token = users_of(running, tmp_path), running.token()
        running.front.way = "500"
        with pytest.raises(Busy, match="status 500"):
            users.authenticate(token)
        running.front.way, running.issuer = "pass", "https://another.example"
        with pytest.raises(Busy, match=r"oidc\.issuer"):
            users.authenticate(token)
        running.issuer = ""
        assert users.authenticate(token) is not None
    with pytest.raises(Busy, match="cannot be reached"):
        users_of(running, tmp_path).authenticate(token)
    assert users.authenticate(token) is not None, "its keys are known for an hour"


def test_roles_may_have_other_names_and_places(running: Provider, tmp_path: Path):
    users = users_of(running, tmp_path, role_claim="realm_access.roles", roles={"Radiologie": "reviewer"})
    user = users.authenticate(running.token(realm_access={"roles": ["Radiologie", "admin"]}))
    assert user is not None
    assert user.role is Role.REVIEWER
    assert users.authenticate(running.token(realm_access=["admin"])) is None


def test_programs_come_in_with_keys_of_accounts(users: OidcUsers, tmp_path: Path):
    key = UserStore.of(tmp_path).add("prometheus", Role.USER)
    user = users.authenticate(key)
    assert user is not None
    assert user.name == "prometheus"
    assert users.sign_in("prometheus", key) == key


def test_names_and_passwords_are_the_providers_where_it_takes_them(running: Provider, users: OidcUsers):
    user = users.authenticate(users.sign_in("anna", "geheim"))
    assert user is not None
    assert user.name == "anna"
    with pytest.raises(NotSignedIn):
        users.sign_in("anna", "falsch")
    running.grants = False
    try:
        with pytest.raises(NotSignedIn, match="takes no passwords"):
            users.sign_in("anna", "geheim")
    finally:
        running.grants = True


def test_a_server_is_told_at_the_start_that_it_lacks_the_provider(tmp_path: Path):
    with pytest.raises(ValidationError, match=r"oidc\.issuer"):
        Settings(studies=tmp_path, auth="oidc")
