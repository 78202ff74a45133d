"""`/logs/`: the end of the server's log, and the GPUs' state."""

from __future__ import annotations

import asyncio
import html as escaping
import shutil
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from deployments.access import AsAdmin, Service
from rayapp.errors import NotFound
from rayapp.logs import log_file
from rayapp.protocol import Path as Route

router = APIRouter(tags=["logs"])

_BLOCK = 1 << 16
_MIN_REFRESH = 3


@router.get("/logs", include_in_schema=False)
@router.get(Route.LOGS, response_class=Response)
async def logs(
    services: Service,
    user: AsAdmin,
    lines: Annotated[int, Query()] = 300,
    html: Annotated[bool, Query()] = True,
    text: Annotated[bool, Query()] = False,
    refresh: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """The last `lines` lines (all for 0 or less), as a page or as text."""
    path = log_file(services.settings)
    try:
        tail = await asyncio.to_thread(_tail, path, lines)
    except FileNotFoundError:
        raise NotFound("there is no log yet") from None
    if text or not html:
        return PlainTextResponse(tail)
    again = f'<meta http-equiv="refresh" content="{max(refresh, _MIN_REFRESH)}">' if refresh else ""
    return HTMLResponse(f"<!doctype html><title>rayapp log</title>{again}<pre>{escaping.escape(tail)}</pre>")


def _tail(path: Path, lines: int) -> str:
    with path.open("rb") as file:
        if lines <= 0:
            return file.read().decode(errors="replace")
        end = file.seek(0, 2)
        data = b""
        while end > 0 and data.count(b"\n") <= lines:
            start = max(0, end - _BLOCK)
            file.seek(start)
            data = file.read(end - start) + data
            end = start
    return b"".join(data.splitlines(keepends=True)[-lines:]).decode(errors="replace")


@router.get(Route.LOGS_GPU, response_class=PlainTextResponse)
async def gpu(user: AsAdmin) -> PlainTextResponse:
    """What `nvidia-smi` prints."""
    program = await asyncio.to_thread(shutil.which, "nvidia-smi")
    if program is None:
        raise NotFound("this machine has no nvidia-smi")
    process = await asyncio.create_subprocess_exec(program, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    return PlainTextResponse(printed.decode(errors="replace"))
