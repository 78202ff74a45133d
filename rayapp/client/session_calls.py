"""Calls about sessions: images that a client uploads for a limited time."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rayapp.client.caller import Caller
from rayapp.client.transport import Call, read_json
from rayapp.protocol import Route
from rayapp.responses import Session, SessionInfo


class SessionCalls(Caller):
    """Images that expire, and never become part of the datastore."""

    async def create_session(self, *files: Path, expiry: int = 0, uncompress: bool = False) -> Session:
        """Upload an image without storing it.

        Args:
            *files: One image file, or the files of one DICOM series.
            expiry: Seconds without use after which the session ends; 0 stands for the server's limit.
            uncompress: Unpack the file, an archive of DICOM files.

        Raises:
            Unreadable: If the files are no readable image.
        """
        query = {"expiry": str(expiry), "uncompress": str(uncompress).lower()}
        call = Call(method="PUT", path=Route.SESSIONS, query=query, files=[("files", file) for file in files])
        return cast(Session, await self._transport.send(call, read_json))

    async def session(self, session: str, *, refresh: bool = False) -> SessionInfo:
        """A session's info.

        Args:
            session: The session's id.
            refresh: Count this call as a use, which postpones the session's expiry.
        """
        path = Route.SESSION.filled(session_id=session)
        return cast(SessionInfo, await self._get(path, update_ts=str(refresh).lower()))

    async def download_session(self, session: str, to: Path) -> Path:
        """Download a session's image.

        Args:
            session: The session's id.
            to: File or folder to write to.

        Returns:
            The file written.
        """
        return await self._download(Route.SESSION.filled(session_id=session), to, image="true")

    async def delete_session(self, session: str) -> None:
        """End a session and delete its image."""
        await self._send("DELETE", Route.SESSION.filled(session_id=session))
