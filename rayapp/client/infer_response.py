"""Decoding of a response to `POST /infer/{model}`: params and mask as multipart, or either alone."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from rayapp.client.results import InferResult
from rayapp.client.transport import CHUNK, read_json, save_chunks, target_path
from rayapp.protocol import PARAMS_HEADER


def infer_reader(to: Path | None) -> Callable[[aiohttp.ClientResponse], Awaitable[InferResult]]:
    """A reader for `Transport.send`.

    Args:
        to: File or folder that the mask is streamed to; None keeps it in memory.
    """

    async def read(response: aiohttp.ClientResponse) -> InferResult:
        if response.content_type == "application/json":
            return InferResult(params=await read_json(response))
        if not response.content_type.startswith("multipart/"):
            disposition = response.content_disposition
            name = disposition.filename if disposition else None
            mask = await _mask(response.content.readany, to, name)
            params = json.loads(response.headers.get(PARAMS_HEADER, "{}"))
            return InferResult(params=params, filename=name, media_type=response.content_type, **mask)
        params = {}
        fields: dict[str, Any] = {}
        async for part in aiohttp.MultipartReader.from_response(response):
            if not isinstance(part, aiohttp.BodyPartReader):
                continue
            if part.name == "params":
                params = await part.json() or {}
            else:
                mask = await _mask(partial(part.read_chunk, CHUNK), to, part.filename)
                fields = {"filename": part.filename, "media_type": part.headers.get("Content-Type"), **mask}
        return InferResult(params=params, **fields)

    return read


async def _mask(next_chunk: Callable[[], Awaitable[bytes]], to: Path | None, name: str | None) -> dict[str, Any]:
    """The fields of `InferResult` that hold the mask: `path` when it goes to a file, else `body`."""
    if to is not None:
        target = target_path(to, name)
        await save_chunks(next_chunk, target)
        return {"path": target}
    chunks = []
    while chunk := await next_chunk():
        chunks.append(chunk)
    return {"body": b"".join(chunks)}
