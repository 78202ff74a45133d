"""OidcUsers: people whom an OpenID Connect provider (OpenID Connect Core 1.0) signs in, as of a hospital.

Tokens are checked here, by the provider's published keys (RFC 7517), so that a click asks nobody else.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import jwt

from rayapp.config import Oidc
from rayapp.errors import Busy, NotSignedIn
from rayapp.protocol import Role
from rayapp.users import User, UserStore

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key pair. Neither `none` nor HMAC, for which the provider's public key would be the secret."""
FRESH_S = 3600.0
"""Seconds after which the provider's configuration and keys are read again."""
RETRY_S = 30.0
"""Least seconds between two readings because of an unknown key: anybody can make up tokens with such."""
PAUSE_S = 5.0
"""Seconds in which a provider that did not answer is not asked again, as everybody would wait for it."""
TIMEOUT_S = 10.0
MAX_DOCUMENT = 1 << 20
AWAY = "the identity provider cannot be reached"


class OidcUsers:
    """The people of a provider, by their access or id tokens, and those of a `UserStore` by their keys. Thread-safe.

    Args:
        settings: the provider, and what its tokens must say.
        store: accounts of programs, which cannot sign in at a provider.
    """

    def __init__(self, settings: Oidc, store: UserStore) -> None:
        self._settings, self._store = settings, store
        self._lock = threading.Lock()
        self._read_at = self._failed_at = float("-inf")
        self._provider: dict[str, Any] = {}
        self._keys: dict[str | None, jwt.PyJWK] = {}

    def authenticate(self, token: str) -> User | None:
        """The user with this token; None if it is of nobody, has expired or is for another service.

        Raises:
            Busy: the provider's keys cannot be read.
        """
        if token.count(".") != 2:
            return self._store.authenticate(token)
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                return None
            key = self._key(header.get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=[header["alg"]],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError:
            return None
        return self._user(claims)

    def sign_in(self, name: str, password: str) -> str:
        """A token for a name and password: those of the provider (RFC 6749, 4.3), or an account's key as the password.

        Raises:
            NotSignedIn: wrong, or the provider takes no passwords from other programs.
            Busy: the provider does not answer.
        """
        user = self._store.authenticate(password)
        if user is not None and user.name == name:
            return password
        form = {"grant_type": "password", "username": name, "password": password, "scope": self._settings.scope}
        form |= {
            "client_id": self._settings.client_id,
            "client_secret": self._settings.client_secret.get_secret_value(),
        }
        answer = self._document(
            self._configuration()["token_endpoint"], {key: text for key, text in form.items() if text}
        )
        tokens = [str(answer[kind]) for kind in ("access_token", "id_token") if kind in answer]
        for token in tokens:
            if self.authenticate(token) is not None:
                return token
        raise NotSignedIn(
            "the identity provider signed in, but with a token that is not for this server: see docs/access"
        )

    def _user(self, claims: Mapping[str, Any]) -> User | None:
        """The user whom the claims describe; None without a name or a role here."""
        name = claims.get(self._settings.name_claim) or claims.get("sub")
        given: Any = claims
        for part in self._settings.role_claim.split("."):
            given = given.get(part) if isinstance(given, Mapping) else None
        texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        roles = [self._settings.roles[text] for text in texts if isinstance(text, str) and text in self._settings.roles]
        if not roles or not isinstance(name, str) or not name:
            return None
        return User(name=name[:200], role=max(roles, key=list(Role).index))

    def _key(self, number: str | None) -> jwt.PyJWK | None:
        """The provider's key of this number; read again if it is unknown, since providers change their keys."""
        with self._lock:
            age = time.monotonic() - self._read_at
            if age > FRESH_S or (number not in self._keys and age > RETRY_S):
                with contextlib.suppress(*((Busy,) if number in self._keys else ())):
                    self._read()
            return self._keys.get(number)

    def _configuration(self) -> dict[str, Any]:
        with self._lock:
            if time.monotonic() - self._read_at > FRESH_S:
                self._read()
            return self._provider

    def _read(self) -> None:
        """Read the provider's configuration (OpenID Connect Discovery 1.0) and keys. The caller holds the lock."""
        if time.monotonic() < self._failed_at + PAUSE_S:
            raise Busy(AWAY)
        self._failed_at = time.monotonic()
        issuer = self._settings.issuer
        found = self._document(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise Busy("the identity provider calls itself by another address: correct oidc.issuer")
        keys = self._document(str(found.get("jwks_uri", "")))
        try:
            usable = [key for key in jwt.PyJWKSet.from_dict(keys).keys if key.public_key_use in (None, "sig")]
        except jwt.PyJWTError:
            raise Busy("the identity provider publishes no key that can be used") from None
        self._keys = {key.key_id: key for key in usable if key.key_type != "oct"}
        self._provider, self._read_at, self._failed_at = found, time.monotonic(), float("-inf")

    def _document(self, url: str, form: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A JSON object of the provider. Raises Busy, and NotSignedIn if it refuses a form."""
        if not url.startswith(("https://", "http://")):
            raise Busy("the identity provider's configuration lacks an address")
        body = None if form is None else urllib.parse.urlencode(form).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=TIMEOUT_S) as answer:
                document = json.loads(answer.read(MAX_DOCUMENT))
        except urllib.error.HTTPError as error:
            with error:
                if form is not None and error.code in (400, 401, 403):
                    raise NotSignedIn(
                        "wrong name or password, or the identity provider takes no passwords from programs: then use a "
                        "key of `rayapp users add`"
                    ) from None
            raise Busy(f"the identity provider answers with status {error.code}") from None
        except (OSError, ValueError):
            raise Busy(AWAY) from None
        if not isinstance(document, dict):
            raise Busy("the identity provider's answer is not a JSON object")
        return document
