"""`rayapp info`, `rayapp logs` and `rayapp reload`: a running server as a whole."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import Json, print_json
from rayapp.commands.annotation import LOCAL, Server, Token

if TYPE_CHECKING:
    from rayapp.client import Client

POLL = 1.0
"""Seconds between two looks at a log that is followed."""
SEEN = 2000
"""Lines of the log that a look compares with those of the one before."""


def info(as_json: Json = False, server: Server = LOCAL, token: Token = None) -> None:
    """Show what the server offers: its images, labels, models, trainers and strategies, and what is not served."""
    from rayapp.client import Client

    with Client(server, token=token) as client:
        described = client.info()
    if as_json:
        print_json(described)
        return
    for line in lines_of(described):
        print(line)


def lines_of(described: Mapping[str, Any]) -> Iterator[str]:
    """A server's `/info/` in a few lines."""
    status = described["datastore"]
    yield f"{described['name']} {described['version']}"
    yield f"images     {status['total']}, of which {status['completed']} have a final label"
    yield f"labels     {', '.join(described['labels'])}"
    for name, model in described["models"].items():
        yield f"model      {name} ({model['type']}) {model.get('version', '')}".rstrip()
    for kind in ("trainers", "strategies", "scoring"):
        if described[kind]:
            yield f"{kind:<10} {', '.join(described[kind])}"
    for name, why in described["broken_models"].items():
        yield f"not served {name}: {why}"


def logs(
    lines: Annotated[int, typer.Option(min=1, help="Number of lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Show the end of the server's log."""
    from rayapp.client import Client

    with Client(server, token=token) as client:
        shown = client.logs(lines=lines)
        print(shown, end="" if shown.endswith("\n") else "\n", flush=True)
        for line in _new_lines(client, shown.splitlines()) if follow else ():
            print(line, flush=True)


def _new_lines(client: Client, shown: list[str]) -> Iterator[str]:
    """Lines of the log after those shown, without end."""
    while True:
        time.sleep(POLL)
        now = client.logs(lines=SEEN).splitlines()
        yield from after(shown, now)
        shown = now


def after(shown: list[str], now: list[str]) -> list[str]:
    """The lines of `now` that come after those of `shown`: all, if none of them is left."""
    overlaps = range(min(len(shown), len(now)), 0, -1)
    known = next((n for n in overlaps if _follows(shown, now, n)), 0)
    return now[known:]


def _follows(shown: list[str], now: list[str], known: int) -> bool:
    """True if the first `known` lines of `now` are the last that were shown."""
    return now[:known] == shown[len(shown) - known :]


def reload(server: Server = LOCAL, token: Token = None) -> None:
    """Make the server load its app again. Needs the role of an administrator."""
    from rayapp.client import Client

    with Client(server, token=token) as client:
        client.reload()
    print("reloaded")
