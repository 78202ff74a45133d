"""A small OpenID Connect provider: discovery, keys, a token endpoint that takes a password, and tokens of any kind."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.front import Asked, Front, front


@dataclass
class Provider:
    """`keys` by their number; those in `hidden` are not published yet."""

    front: Front
    keys: dict[str, rsa.RSAPrivateKey] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    passwords: dict[str, str] = field(default_factory=lambda: {"anna": "geheim"})
    grants: bool = True
    """Takes names and passwords from programs."""
    issuer: str = ""
    """What its configuration calls it, if not by its address."""

    def new_key(self, number: str) -> None:
        """One more key, which signs from now on."""
        self.keys[number] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def claims(self, **other: Any) -> dict[str, Any]:
        """The claims of a good token of anna's; None takes one out."""
        now = int(time.time())
        usual = {"iss": self.front.url, "aud": "rayapp", "sub": "1", "preferred_username": "anna", "iat": now}
        claims = {**usual, "exp": now + 300, "roles": ["annotator"], **other}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, *, number: str | None = None, **other: Any) -> str:
        """A token that the newest key, or that of the number, has signed."""
        number = number or list(self.keys)[-1]
        return jwt.encode(self.claims(**other), self.keys[number], "RS256", headers={"kid": number})

    def answer(self, asked: Asked) -> web.Response:
        """What it answers."""
        if asked.path.endswith("/openid-configuration"):
            places = {"jwks_uri": f"{self.front.url}/keys", "token_endpoint": f"{self.front.url}/token"}
            return web.json_response({"issuer": self.issuer or self.front.url, **places})
        if asked.path == "/keys":
            shown = [self._public(number) for number in self.keys if number not in self.hidden]
            return web.json_response({"keys": shown})
        form = dict(urllib.parse.parse_qsl(asked.body.decode()))
        if not self.grants or self.passwords.get(form["username"]) != form["password"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response({"access_token": self.token(preferred_username=form["username"])})

    def _public(self, number: str) -> dict[str, Any]:
        public = json.loads(RSAAlgorithm.to_jwk(self.keys[number].public_key()))
        return {**public, "kid": number, "use": "sig", "alg": "RS256"}


@contextmanager
def provider() -> Iterator[Provider]:
    """A running one, with one key."""
    with front() as standing:
        made = Provider(standing)
        made.new_key("first")
        standing.answer = made.answer
        yield made
