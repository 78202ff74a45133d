"""Credentials: how this server signs in at the DICOM archive: basic, bearer, or OAuth 2 client credentials.

A token of the last kind (RFC 6749 4.4) is fetched when one is needed and renewed before it ends. Any thread may ask;
one fetches at a time.
"""

from __future__ import annotations

import threading
import time
from base64 import b64encode

import requests
from requests.auth import AuthBase

from rayapp.config import Dicomweb
from rayapp.errors import ArchiveAway

_EARLY = 30.0  # seconds before its end at which a token is renewed
_LASTS = 300.0  # a token that does not say how long it lasts


class Credentials(AuthBase):
    """Signs requests, also as the `auth` of a `requests` session."""

    def __init__(self, archive: Dicomweb) -> None:
        self._archive = archive
        self._fetching = threading.Lock()
        self._token = ""
        self._ends = 0.0

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request. Raises ArchiveAway when no token is to be had."""
        value = self.header()
        if value:
            request.headers["Authorization"] = value
        return request

    def header(self) -> str:
        """The value of `Authorization` now, "" for none; may wait for the token's server. Raises ArchiveAway."""
        archive = self._archive
        if archive.token_url:
            return f"Bearer {self._renewed()}"
        if archive.token:
            return f"Bearer {archive.token.get_secret_value()}"
        if archive.user is not None:
            return "Basic " + _pair(archive.user, archive.password.get_secret_value())
        return ""

    def _renewed(self) -> str:
        with self._fetching:
            if time.monotonic() > self._ends - _EARLY:
                self._token, lasts = self._fetch()
                self._ends = time.monotonic() + max(lasts, 2 * _EARLY)
            return self._token

    def _fetch(self) -> tuple[str, float]:
        archive = self._archive
        form = {"grant_type": "client_credentials", **({"scope": archive.scope} if archive.scope else {})}
        key = _pair(archive.client_id, archive.client_secret.get_secret_value())
        try:
            with requests.Session() as session:
                session.trust_env = False  # a .netrc would overrule the header
                answer = session.post(
                    str(archive.token_url),
                    data=form,
                    headers={"Authorization": f"Basic {key}", "Accept": "application/json"},
                    timeout=archive.timeout,
                    allow_redirects=False,
                )
            if answer.status_code != 200:
                raise ArchiveAway(f"the archive's token server refuses this server's key ({answer.status_code})")
            token = answer.json()
            return str(token["access_token"]), float(token.get("expires_in") or _LASTS)
        except (requests.RequestException, KeyError, TypeError, ValueError) as error:
            raise ArchiveAway(f"the archive's token server gives no token ({type(error).__name__})") from None


def _pair(user: str, password: str) -> str:
    return b64encode(f"{user}:{password}".encode()).decode()
