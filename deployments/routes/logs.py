"""`/logs/`: the tail of the server's log, and the state of the GPUs."""

from __future__ import annotations

import asyncio
import html as escaping
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from deployments.access import AsAdmin, Service
from deployments.problems import problems
from deployments.replies import file_reply
from rayapp.errors import Busy, NotFound
from rayapp.protocol import Route
from rayapp.runtime.logs import log_file

router = APIRouter(tags=["logs"], responses=problems(404, 422, 503))

_BLOCK = 1 << 16
_LONGEST = 16 << 20
"""Bytes of log per response, unless the whole log is requested."""
_MIN_REFRESH = 3
_GPU_TIMEOUT = 10.0
_TEXT = "text/plain; charset=utf-8"


@router.get(Route.LOGS, response_class=Response, responses={200: {"content": {"text/html": {}, "text/plain": {}}}})
async def logs(
    services: Service,
    user: AsAdmin,
    lines: Annotated[int, Query()] = 300,
    html: Annotated[bool, Query()] = True,
    text: Annotated[bool, Query()] = False,
    refresh: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """The last `lines` lines (0 or less: all), as a page that reloads every `refresh` seconds, or as text."""
    path = log_file(services.settings)
    if lines <= 0:
        return await file_reply(path, name=None, media_type=_TEXT)
    try:
        tail = await asyncio.to_thread(_tail, path, lines)
    except FileNotFoundError:
        raise NotFound("the log is empty: nothing was logged yet") from None
    if text or not html:
        return PlainTextResponse(tail)
    again = f'<meta http-equiv="refresh" content="{max(refresh, _MIN_REFRESH)}">' if refresh else ""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8">{again}<title>rayapp log</title>'
    return HTMLResponse(f"{head}<pre>{escaping.escape(tail)}</pre></html>")


def _tail(path: Path, lines: int) -> str:
    """The last lines, read backwards from the end: a long log costs no more than a short one."""
    blocks: list[bytes] = []
    newlines = size = 0
    with path.open("rb") as file:
        at = file.seek(0, 2)
        while at > 0 and newlines <= lines and size < _LONGEST:
            start = max(0, at - _BLOCK)
            file.seek(start)
            block = file.read(at - start)
            blocks.append(block)
            newlines += block.count(b"\n")
            size += len(block)
            at = start
    return b"\n".join(b"".join(reversed(blocks)).rstrip(b"\n").split(b"\n")[-lines:]).decode(errors="replace") + "\n"


@router.get(Route.LOGS_GPU, response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def gpu(user: AsAdmin) -> Response:
    """Output of `nvidia-smi`."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec("nvidia-smi", stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    except FileNotFoundError:
        raise NotFound("this machine has no nvidia-smi") from None
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), _GPU_TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Busy("nvidia-smi did not answer in time; retry") from None
    return PlainTextResponse(printed.decode(errors="replace"))
