"""Generate `synchronous.py`, the blocking client, from the asynchronous one.

    python -m rayapp.client.make_synchronous

Written out rather than made at run time, so that editors, type checkers and the reference see each method's signature
and docstring. Run it after changing a public method of `AsyncClient` or `AsyncInteraction`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
TARGET = FOLDER / "synchronous.py"
CLIENT = (
    "asynchronous",
    "inference_calls",
    "active_learning_calls",
    "datastore_calls",
    "model_calls",
    "session_calls",
    "job_calls",
)
"""The modules whose classes make up `AsyncClient`."""
INTERACTION = ("async_interaction",)

HEADER = '''
"""Client and Interaction: the client for programs without an event loop.

Generated from the asynchronous client by `python -m rayapp.client.make_synchronous`: change that, not this.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack

from rayapp.client.async_interaction import AsyncInteraction, Mask, Points, PromptFields
from rayapp.client.asynchronous import AsyncClient
from rayapp.client.caller import Params
from rayapp.client.results import InferResult
from rayapp.protocol import FINAL, JobKind, Output
from rayapp.responses import (
    DatastoreStatus,
    Info,
    InteractionState,
    Job,
    LabelRevision,
    ModelFile,
    Sample,
    SavedLabel,
    Session,
    SessionInfo,
    UserInfo,
    Versions,
)

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine on the client's event loop and waits for its result."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


class Client:
    """A client of one server whose methods block; use it as `with Client(url) as client`, or call `close`.

    Its calls run on an event loop in a thread of its own, so it may be shared between threads and used in notebooks.
    Coordinates are voxel indices [i, j, k] of the image as its file stores it. Errors and retries are those of
    `AsyncClient`.
    """

    def __init__(
        self, url: str, *, token: str | None = None, client_id: str | None = None, timeout: float = 600
    ) -> None:
        """Open the connection.

        Args:
            url: The server's address, such as `http://127.0.0.1:8000`.
            token: The user's token, for a server started with `--auth`.
            client_id: Name of this annotator's program. A newer click of the same program supersedes its older one
                that is still queued.
            timeout: Seconds that the server may stay silent before a call fails with `Unreachable`.

        Raises:
            BadRequest: If `url` does not begin with `http://` or `https://`.
        """
        self._client = AsyncClient(url, token=token, client_id=client_id, timeout=timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rayapp client", daemon=True)
        self._thread.start()
        self._run(self._client.__aenter__())

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread. Closing twice has no effect."""
        if self._loop.is_closed():
            return
        self._run(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
'''

INTERACTION_HEADER = '''
class Interaction:
    """An interaction on one server, made by `Client.open_interaction`; its methods block."""

    def __init__(self, interaction: AsyncInteraction, run: Run) -> None:
        self._interaction = interaction
        self._run = run

    @property
    def id(self) -> str:
        """The interaction's id, which `Client.interaction` continues from any machine."""
        return self._interaction.id

    @property
    def image(self) -> str:
        """Id of the image."""
        return self._interaction.image

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._interaction.model

    @property
    def labels(self) -> Mask | None:
        """The current mask, (I, J, K); None before the first prompt."""
        return self._interaction.labels

    @property
    def step(self) -> int:
        """Number of the event in the click log that `labels` belongs to."""
        return self._interaction.step

    @property
    def params(self) -> dict[str, Any]:
        """The params that came with `labels`."""
        return self._interaction.params
'''

FOOTER = '''
def _iterate(run: Run, items: AsyncGenerator[T, None]) -> Iterator[T]:
    """The items of an asynchronous generator, which is closed when the caller stops iterating."""

    async def following() -> T | None:
        return await anext(items, None)

    try:
        while (item := run(following())) is not None:
            yield item
    except GeneratorExit:
        with contextlib.suppress(RuntimeError):  # the client was closed before, and its connections with it
            run(items.aclose())
        raise


__all__ = ["Client", "Interaction"]
'''


def generated() -> str:
    """The text of `synchronous.py`, formatted."""
    text = [HEADER, *_methods(CLIENT, "_client"), "\n", INTERACTION_HEADER, *_methods(INTERACTION, "_interaction")]
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET), "-"]
    source = "\n".join([*text, "\n", FOOTER]).lstrip()
    return subprocess.run(ruff, input=source, capture_output=True, text=True, check=True).stdout


def _methods(modules: tuple[str, ...], target: str) -> Iterator[str]:
    for module in modules:
        for node in ast.parse((FOLDER / f"{module}.py").read_text()).body:
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, (ast.AsyncFunctionDef, ast.FunctionDef)) and method.name[0] != "_":
                    yield _blocking(method, target)


def _blocking(method: ast.AsyncFunctionDef | ast.FunctionDef, target: str) -> str:
    """The blocking method that calls `method` of `self.<target>`."""
    arguments = method.args
    passed = [arg.arg for arg in arguments.args[1:]]
    passed += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    passed += [f"{arg.arg}={arg.arg}" for arg in arguments.kwonlyargs]
    passed += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    call = f"self.{target}.{method.name}({', '.join(passed)})"
    returned = ast.unparse(method.returns) if method.returns else "None"
    if returned.startswith("AsyncGenerator["):
        returned = returned.removeprefix("Async").replace("Generator", "Iterator").replace(", None]", "]")
        body = f"return _iterate(self._run, {call})"
    elif returned == "AsyncInteraction":
        returned, body = "Interaction", f"return Interaction(self._run({call}), self._run)"
    else:
        body = f"return self._run({call})" if returned != "None" else f"self._run({call})"
    doc = (ast.get_docstring(method, clean=False) or "").replace("Async", "")
    return f'    def {method.name}({ast.unparse(arguments)}) -> {returned}:\n        """{doc}"""\n        {body}\n'


if __name__ == "__main__":
    TARGET.write_text(generated())
