"""Front: a small server that stands before an archive, notes what it is asked, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from tests.waiting import until_async

PLAIN = "pass"
BROKEN = "500"
SLOW = "slow"
CUT = "cut"
DENIED = "denied"
HELD = "held"
WAYS = (BROKEN, SLOW, CUT, DENIED)


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str  # with its query, not decoded
    headers: dict[str, str]
    body: bytes


@dataclass
class Front:
    """`way` is how it answers: PLAIN, or BROKEN (500), SLOW (after 3 s), CUT (half of the body), DENIED (401), HELD
    (once `way` is another).

    Without a `target` it answers by `answer`.
    """

    target: str | None = None
    url: str = ""
    way: str = PLAIN
    only: str = ""
    """Misbehaves only where the path holds this, or for this method."""
    asked: list[Asked] = field(default_factory=list)
    answer: Callable[[Asked], web.StreamResponse] = lambda _: web.Response(text="fine")

    def paths(self, part: str, method: str = "GET") -> list[str]:
        """The paths asked for that hold `part`."""
        return [asked.path for asked in self.asked if part in asked.path and asked.method == method]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.method, request.raw_path, dict(request.headers), await request.read())
        self.asked.append(asked)
        way = self.way if self.only in request.raw_path or self.only == request.method else PLAIN
        if way == BROKEN:
            return web.Response(status=500, text="NullPointerException at com.vendor.Pacs")
        if way == DENIED:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
        if way == SLOW:
            await asyncio.sleep(3)
        if way == HELD:
            await until_async(lambda: self.way != HELD, within=600)
        if self.target is None:
            return self.answer(asked)
        status, headers, body = await self._ask(asked)
        if way != CUT:
            return web.Response(status=status, headers=headers, body=body)
        reply = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(body))})
        await reply.prepare(request)
        await reply.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.close()
        return reply

    async def _ask(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        passed = {name: value for name, value in asked.headers.items() if name in ("Accept", "Content-Type")}
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                asked.method, (self.target or "") + asked.path, headers=passed, data=asked.body or None
            ) as answer,
        ):
            return answer.status, {"Content-Type": answer.headers.get("Content-Type", "")}, await answer.read()


@contextmanager
def front(target: str | None = None) -> Iterator[Front]:
    """A running one, before the server `target` (its root, without a path)."""
    standing, ready, stop = Front(target), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", standing._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        standing.url = f"http://{host}:{port}"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield standing
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
