"""Authentication of this server at the DICOM archive: basic, bearer token, or OAuth 2 client credentials.

An OAuth 2 access token (RFC 6749 section 4.4) is requested on first use, and renewed before it expires or when the
archive refuses it, as after a restart of the authorization server. Thread-safe; one thread requests a token at a time.
"""

from __future__ import annotations

import threading
import time
from base64 import b64encode
from typing import Any

import requests
from requests.auth import AuthBase

from rayapp.config import Dicomweb
from rayapp.errors import ArchiveAway

_RENEW_BEFORE_S = 30.0  # a token is renewed this long before it expires
_DEFAULT_LIFETIME_S = 300.0  # of a token whose response has no `expires_in`


class Credentials(AuthBase):
    """Adds the `Authorization` header to requests; usable as the `auth` of a `requests` session."""

    def __init__(self, archive: Dicomweb) -> None:
        self._archive = archive
        self._requesting = threading.Lock()
        self._token = ""
        self._expires = 0.0

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request; if its token is refused, it is sent once more with a new one. Raises ArchiveAway if there is
        no token.
        """
        value = self.header()
        if value:
            request.headers["Authorization"] = value
            request.register_hook("response", self._resend_if_refused)
        return request

    def _resend_if_refused(self, answer: requests.Response, **sending: Any) -> requests.Response:
        """The response; if it is a refusal that a new token may mend, the response to the request signed again."""
        refused = answer.request
        if answer.status_code != 401 or not self.drop(str(refused.headers.get("Authorization"))):
            return answer
        if not isinstance(refused.body, (bytes, str, type(None))):
            return answer  # a stream that was read already; the next request has a new token
        answer.close()
        again = refused.copy()
        again.headers["Authorization"] = self.header()
        resent: requests.Response = answer.connection.send(again, **sending)
        return resent

    def header(self) -> str:
        """The current value of `Authorization`; "" for an archive without authentication.

        May wait for the token endpoint. Raises ArchiveAway if no access token can be obtained.
        """
        archive = self._archive
        if archive.token_url:
            return f"Bearer {self._valid_token()}"
        if archive.token:
            return f"Bearer {archive.token.get_secret_value()}"
        if archive.user is not None:
            return "Basic " + _basic(archive.user, archive.password.get_secret_value())
        return ""

    def drop(self, header: str) -> bool:
        """Discard the access token that the archive refused.

        Args:
            header: the value of `Authorization` that was refused.

        Returns:
            True if `header` may have another value now, so that repeating the request makes sense.
        """
        if not self._archive.token_url:
            return False
        with self._requesting:
            if header == f"Bearer {self._token}":
                self._expires = 0.0
        return True

    def _valid_token(self) -> str:
        with self._requesting:
            if time.monotonic() > self._expires - _RENEW_BEFORE_S:
                self._token, lifetime = self._request_token()
                self._expires = time.monotonic() + max(lifetime, 2 * _RENEW_BEFORE_S)
            return self._token

    def _request_token(self) -> tuple[str, float]:
        """A new access token and its lifetime in seconds."""
        archive = self._archive
        form = {"grant_type": "client_credentials", **({"scope": archive.scope} if archive.scope else {})}
        key = _basic(archive.client_id, archive.client_secret.get_secret_value())
        try:
            with requests.Session() as session:
                session.trust_env = False  # a .netrc would override the header
                answer = session.post(
                    str(archive.token_url),
                    data=form,
                    headers={"Authorization": f"Basic {key}", "Accept": "application/json"},
                    timeout=archive.timeout,
                    allow_redirects=False,
                )
            if answer.status_code != 200:
                raise ArchiveAway(
                    f"the token endpoint of the DICOM archive answered with status {answer.status_code}: check "
                    "dicomweb.token_url, dicomweb.client_id and dicomweb.client_secret"
                )
            token = answer.json()
            return str(token["access_token"]), float(token.get("expires_in") or _DEFAULT_LIFETIME_S)
        except (requests.RequestException, KeyError, TypeError, ValueError) as error:
            raise ArchiveAway(
                f"no access token from the token endpoint of the DICOM archive ({type(error).__name__}): check "
                "dicomweb.token_url, or try again when it is back"
            ) from None


def _basic(user: str, password: str) -> str:
    """The credentials of the Basic scheme (RFC 7617)."""
    return b64encode(f"{user}:{password}".encode()).decode()
