"""The client's transport, against small servers that misbehave on purpose; its routes are tested in tests/contract."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import MultipartWriter, web
from aiohttp.test_utils import TestServer

from rayapp import errors
from rayapp.client import AsyncClient, Client, JobKind, Unreachable, async_interaction
from rayapp.imaging import mask_codec

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler, **options):
    """A client of a server that answers everything with `handler`."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server, AsyncClient(str(server.make_url("")), **options) as client:
        yield client


def answers(*statuses: int, headers: dict[str, str] | None = None):
    """A handler that gives these statuses in turn, the last one for ever, and the list of what it was asked."""
    asked: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        await request.read()
        status = statuses[min(len(asked), len(statuses) - 1)]
        asked.append(request)
        return web.json_response(
            {"detail": "busy"} if status >= 400 else {"name": "it"}, status=status, headers=headers
        )

    return handler, asked


async def test_a_get_is_repeated_while_the_server_is_busy():
    handler, asked = answers(503, 503, 200, headers={"Retry-After": "0"})
    async with served(handler) as client:
        assert (await client.info())["name"] == "it"
    assert len(asked) == 3


async def test_retry_after_is_waited_for():
    handler, _ = answers(503, 200, headers={"Retry-After": "1"})
    loop = asyncio.get_running_loop()
    async with served(handler) as client:
        began = loop.time()
        await client.info()
    assert loop.time() - began >= 1.0


async def test_repeating_ends_with_busy():
    handler, asked = answers(503, headers={"Retry-After": "0.01"})
    async with served(handler) as client:
        with pytest.raises(errors.Busy, match="busy"):
            await client.info()
    assert len(asked) == 5


async def test_a_broken_model_is_not_asked_again():
    handler, asked = answers(503)
    async with served(handler) as client:
        with pytest.raises(errors.Busy):
            await client.infer("m", "i")
    assert len(asked) == 1


async def test_an_inference_that_was_turned_away_is_repeated(tmp_path: Path):
    handler, asked = answers(503, 200, headers={"Retry-After": "0.01"})
    async with served(handler) as client:
        await client.infer("m", "i", label=_file(tmp_path / "mask.nrrd", 10))
    assert len(asked) == 2


async def test_a_save_is_sent_once_even_if_the_server_is_busy(tmp_path: Path):
    handler, asked = answers(503, 200, headers={"Retry-After": "0.01"})
    async with served(handler) as client:
        with pytest.raises(errors.Busy):
            await client.save_label("i", _file(tmp_path / "label.nrrd", 10))
    assert len(asked) == 1


async def test_a_dropped_connection_is_tried_again_only_for_what_changes_nothing(tmp_path: Path):
    asked: list[str] = []

    async def drop(request: web.Request) -> web.Response:
        await request.read()
        asked.append(request.method)
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with served(drop) as client:
        with pytest.raises(Unreachable):
            await client.save_label("i", _file(tmp_path / "label.nrrd", 10))
        assert asked == ["PUT"]
        with pytest.raises(Unreachable):
            await client.infer("m", "i")
        assert asked == ["PUT", "POST"]
        with pytest.raises(Unreachable):
            await client.info()
        assert asked[2:] == ["GET"] * 5


async def test_a_turn_of_an_interaction_is_tried_again_with_the_same_id_so_that_it_counts_once():
    requests: list[str] = []

    async def drop(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response({"id": "7-00", "image": "i", "model": "m"})
        requests.append((await request.json())["request"])
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with served(drop) as client:
        work = await client.interaction("7-00")
        with pytest.raises(Unreachable):
            await work.prompt({"liver": [[1, 2, 3]]})
        assert len(requests) == 5
        with pytest.raises(Unreachable):
            await work.undo()
    assert len(set(requests[:5])) == 1
    assert len(set(requests)) == 2


async def test_none_removes_what_an_earlier_prompt_gave_and_a_field_left_out_keeps_it():
    bodies: list[dict[str, object]] = []

    async def drop(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response({"id": "7-00", "image": "i", "model": "m"})
        bodies.append(await request.json())
        return web.json_response({"detail": "enough"}, status=400)

    async with served(drop) as client:
        work = await client.interaction("7-00")
        with pytest.raises(errors.BadRequest):
            await work.prompt(start=None, roi=None, label=None, slice=None, marks=None)
        with pytest.raises(errors.BadRequest):
            await work.prompt({"liver": [[1, 2, 3]]})
    removed, kept = ({*body} - {"request", "onto", "client_id"} for body in bodies)
    assert removed == {"start", "roi", "label", "slice"}
    assert [bodies[0][name] for name in removed] == [None] * 4
    assert kept == {"clicks"}


async def test_a_download_that_breaks_off_is_fetched_whole_the_next_time(tmp_path: Path):
    whole, asked = bytes(range(256)) * 1024, []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
        await response.prepare(request)
        await response.write(whole if len(asked) > 1 else whole[:70_000])
        if len(asked) == 1:
            assert request.transport is not None
            request.transport.close()
        return response

    async with served(handler) as client:
        file = await client.download_image("i", tmp_path / "image.nii.gz")
    assert file.read_bytes() == whole
    assert _names(tmp_path) == ["image.nii.gz"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.NotSignedIn),
        (403, errors.NotAllowed),
        (404, errors.NotFound),
        (406, errors.Disabled),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (422, errors.Unreadable),
        (429, errors.AlreadyRunning),
        (500, errors.RayappError),
    ],
)
async def test_an_error_comes_as_its_class_with_the_servers_words(status: int, kind: type[errors.RayappError]):
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"detail": "do this"}, status=status)

    async with served(handler) as client:
        with pytest.raises(kind, match=r"^do this$") as caught:
            await client.info()
    assert caught.value.status == status
    assert type(caught.value) is kind


async def test_errors_of_validation_and_plain_text_are_told_in_one_line():
    details = iter(
        [
            web.json_response({"detail": [{"loc": ["query", "id"], "msg": "Field required"}]}, status=422),
            web.Response(text="Internal Server Error", status=500),
        ]
    )

    async def handler(request: web.Request) -> web.Response:
        return next(details)

    async with served(handler) as client:
        with pytest.raises(errors.Unreadable, match=r"^query\.id: Field required$"):
            await client.info()
        with pytest.raises(errors.RayappError, match="Internal Server Error"):
            await client.info()


async def test_no_server_is_told_with_its_address():
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9"):
            await client.next_sample("first")


async def test_a_large_file_is_streamed_up_and_down(tmp_path: Path):
    source = _file(tmp_path / "big image.nii.gz", 40 << 20)

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.FileResponse(source, headers={"Content-Disposition": 'attachment; filename="big.nii.gz"'})
        size, name = 0, ""
        async for part in await request.multipart():
            if part.name == "file":
                name = part.filename
                while chunk := await part.read_chunk(1 << 20):
                    size += len(chunk)
        return web.json_response({"image": f"{name} {size} {request.content_length is not None}"})

    async with served(handler) as client:
        assert await client.upload_image(source) == f"big image.nii.gz {40 << 20} True"
        (tmp_path / "in").mkdir()
        file = await client.download_image("big", tmp_path / "in")
    assert file == tmp_path / "in" / "big.nii.gz"
    assert file.read_bytes() == source.read_bytes()


async def test_a_servers_file_name_never_leads_out_of_the_folder(tmp_path: Path):
    names = iter(["../../evil.nrrd", "C:\\x\\evil.nrrd", ".."])

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"x", headers={"Content-Disposition": f'attachment; filename="{next(names)}"'})

    folder = tmp_path / "in"
    folder.mkdir()
    async with served(handler) as client:
        for _ in range(2):
            assert (await client.download_label("i", folder)).parent == folder
        with pytest.raises(Unreachable, match="no usable name"):
            await client.download_label("i", folder)


async def test_an_inference_answers_params_and_mask(tmp_path: Path):
    mask = bytes(range(256)) * 8192

    async def handler(request: web.Request) -> web.Response:
        form = await request.post()
        with MultipartWriter("form-data") as parts:
            parts.append_json(json.loads(form["params"])).set_content_disposition("form-data", name="params")
            image = parts.append(mask)
            image.set_content_disposition("form-data", name="image", filename="m.nrrd")
        return web.Response(body=parts)

    async with served(handler, client_id="me") as client:
        kept = await client.infer("m", "i", params={"liver": [[1, 2, 3]]})
        saved = await client.infer("m", "i", to=tmp_path)
    assert kept.params == {"liver": [[1, 2, 3]], "client_id": "me"}
    assert (kept.body, kept.filename, kept.path) == (mask, "m.nrrd", None)
    assert (saved.body, saved.path) == (None, tmp_path / "m.nrrd")
    assert (tmp_path / "m.nrrd").read_bytes() == mask


async def test_names_are_escaped_in_paths_and_the_token_goes_along():
    seen = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers.get("Authorization")))
        return web.json_response({})

    async with served(handler, token="secret") as client:
        assert await client.next_sample("a b/c") is None
        await client.image_info("x&y=#")
    assert seen == [
        ("/activelearning/a%20b%2Fc", "Bearer secret"),
        ("/datastore/image/info?image=x%26y%3D%23", "Bearer secret"),
    ]


async def test_idle_background_work_is_no_error():
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"detail": "No Train Tasks Found"}, status=404)

    async with served(handler) as client:
        assert await client.jobs(JobKind.TRAIN) == []
        assert await client.running(JobKind.BATCH) is False


async def test_the_blocking_client_works_beside_a_running_loop():
    handler, _ = answers(200)
    app = web.Application()
    app.router.add_get("/info/", handler)

    def ask(url: str) -> str:
        with Client(url) as client:
            name = client.info()["name"]
        client.close()
        return name

    async with TestServer(app) as server:
        assert await asyncio.to_thread(ask, str(server.make_url(""))) == "it"


def _file(path: Path, size: int) -> Path:
    path.write_bytes(bytes(size))
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_job_is_followed_across_a_broken_connection_to_its_end():
    states = [{"status": "RUNNING", "progress": None}, {"status": "DONE", "progress": None, "end_ts": "now"}]
    served_events, last = [], []

    async def handler(request: web.Request) -> web.StreamResponse:
        served_events.append(request.path)
        last.append(request.headers.get("Last-Event-ID"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        event = states[len(served_events) - 1]
        await response.write(f": keep-alive\n\nevent: job\ndata: {json.dumps(event)}\nid: {len(last)}\n\n".encode())
        if "end_ts" not in event:
            assert request.transport is not None
            request.transport.abort()
        return response

    async with served(handler) as client:
        assert [job["status"] async for job in client.follow("a b")] == ["RUNNING", "DONE"]
    assert served_events == ["/jobs/a b/events"] * 2
    assert last == [None, "1"]


async def test_following_a_job_that_is_not_there_says_so():
    handler, _ = answers(404)
    async with served(handler) as client:
        with pytest.raises(errors.NotFound):
            await anext(client.follow("a"))


class Stages:
    """An interaction whose answer has two masks; each connection breaks after the events that it is given."""

    def __init__(self, *connections: tuple[int, ...]):
        self.connections = connections
        self.asked: list[tuple[str | None, dict[str, Any]]] = []
        self.masks = [np.zeros((3, 2, 2), np.uint8) for _ in range(2)]
        self.masks[0][1, 0, 0], self.masks[1][2, 1, 1] = 1, 1

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"id": "7-a", "image": "ct", "model": "m"})
        self.asked.append((request.headers.get("Last-Event-ID"), await request.json()))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in self.connections[min(len(self.asked), len(self.connections)) - 1]:
            await response.write(self.event(number))
        assert request.transport is not None
        request.transport.abort()
        return response

    def event(self, number: int) -> bytes:
        if number == len(self.masks):
            return b"event: end\ndata: {}\n\n"
        onto = self.masks[number - 1] if number else None
        told = {"step": 8, "mask": f"{number}", "onto": f"{number - 1}" if number else ""}
        mask = base64.b64encode(mask_codec.encode(self.masks[number], onto)).decode()
        data = json.dumps({"params": {"interaction": told}, "mask": mask})
        return f"event: mask\ndata: {data}\nid: {number}\n\n".encode()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnecting without waiting."""

    async def at_once(_: float) -> None:
        pass

    monkeypatch.setattr(async_interaction.asyncio, "sleep", at_once)


async def test_the_masks_of_a_prompt_are_received_across_broken_connections_each_once(no_pause: None):
    stages = Stages((0,), (), (1,), (2,))
    async with served(stages.answer) as client:
        work = await client.interaction("7-a")
        masks = [mask async for mask in work.stream({"liver": [[1, 2, 3]]})]
    np.testing.assert_array_equal(masks, stages.masks)
    assert [last for last, _ in stages.asked] == [None, "0", "0", "1"]
    assert len({body["request"] for _, body in stages.asked}) == 1, "the prompt counts once"
    np.testing.assert_array_equal(work.labels, stages.masks[1])


async def test_a_stream_that_breaks_again_and_again_without_a_mask_is_given_up(no_pause: None):
    stages = Stages((0,), ())
    masks = []
    async with served(stages.answer) as client:
        work = await client.interaction("7-a")
        with pytest.raises(Unreachable):
            masks += [mask async for mask in work.stream({"liver": [[1, 2, 3]]})]
    assert len(stages.asked) == 5
