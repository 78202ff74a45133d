"""A zoo over HTTP, as `models/model_info.json` of MONAI's describes one: an index, and archives, some of them bad."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class FakeZoo:
    """`archives` by file name; `faults` by file name: missing, torn, other, stalled. `asked` is what was fetched."""

    url: str = ""
    archives: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    index: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, version: str, archive: bytes, *, fault: str = "") -> None:
        """Put a version of a bundle into the zoo."""
        key = f"{name}_v{version}"
        self.archives[f"{key}.zip"], self.faults[f"{key}.zip"] = archive, fault
        digest = hashlib.sha1(archive).hexdigest()
        self.index[key] = {"checksum": digest, "source": f"{self.url}/releases/{key}.zip"}

    async def listed(self, request: web.Request) -> web.Response:
        """The index."""
        return web.json_response(self.index)

    async def archive(self, request: web.Request) -> web.StreamResponse:
        """One archive, or what is wrong with it."""
        name = request.match_info["name"]
        self.asked.append(name)
        body, fault = self.archives[name], self.faults[name]
        if fault == "missing":
            raise web.HTTPNotFound
        if fault == "other":
            return web.Response(body=body[:-1] + b"?")
        if fault not in ("torn", "stalled"):
            return web.Response(body=body)
        answer = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await answer.prepare(request)
        await answer.write(body[: len(body) // 2])
        if fault == "stalled":
            await asyncio.sleep(2)
        assert request.transport is not None
        request.transport.close()
        return answer


@contextmanager
def open_zoo() -> Iterator[FakeZoo]:
    """A zoo for as long as it is needed; its index lies at `url` + /models/model_info.json."""
    zoo, loop = FakeZoo(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_get("/models/model_info.json", zoo.listed)
    app.router.add_get("/releases/{name}", zoo.archive)
    runner = web.AppRunner(app)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    zoo.url = f"http://127.0.0.1:{loop.run_until_complete(start())}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield zoo
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
