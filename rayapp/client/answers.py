"""An inference's answer as it comes: params and mask in parts, or either alone, kept or streamed to a file."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from rayapp.client.results import InferResult
from rayapp.client.transport import CHUNK, read_json, save, target_of
from rayapp.protocol import PARAMS_HEADER


def read_infer(to: Path | None) -> Callable[[aiohttp.ClientResponse], Awaitable[InferResult]]:
    """A reader of an inference's answer: params and mask in parts, or either alone."""

    async def read(response: aiohttp.ClientResponse) -> InferResult:
        if response.content_type == "application/json":
            return InferResult(params=await read_json(response))
        if not response.content_type.startswith("multipart/"):
            disposition = response.content_disposition
            name = disposition.filename if disposition else None
            kept = await _keep(response.content.readany, to, name)
            params = json.loads(response.headers.get(PARAMS_HEADER, "{}"))
            return InferResult(params=params, filename=name, media_type=response.content_type, **kept)
        params = {}
        mask: dict[str, Any] = {}
        async for part in aiohttp.MultipartReader.from_response(response):
            if not isinstance(part, aiohttp.BodyPartReader):
                continue
            if part.name == "params":
                params = await part.json() or {}
            else:
                kept = await _keep(partial(part.read_chunk, CHUNK), to, part.filename)
                mask = {"filename": part.filename, "media_type": part.headers.get("Content-Type"), **kept}
        return InferResult(params=params, **mask)

    return read


async def _keep(next_chunk: Callable[[], Awaitable[bytes]], to: Path | None, name: str | None) -> dict[str, Any]:
    if to is not None:
        target = target_of(to, name)
        await save(next_chunk, target)
        return {"path": target}
    chunks = []
    while chunk := await next_chunk():
        chunks.append(chunk)
    return {"body": b"".join(chunks)}
