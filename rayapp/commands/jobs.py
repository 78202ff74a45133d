"""`rayapp train` and `rayapp jobs`: background work of a running server, with live bars."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.annotation import LOCAL, Server, Token

if TYPE_CHECKING:
    from rich.table import Table

    from rayapp.client import Job

SHOWN = 8
"""Characters of an id in a table, at least."""


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As `/info/` lists it under trainers.")],
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the trainer; may be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Follow it to its end, or print its id only.")] = True,
    enqueue: Annotated[bool, typer.Option(help="Let it wait while another training runs.")] = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Train a model on the images that have a final label; exit 1 if it does not end well.

    Ctrl-C ends the watching, not the training.
    """
    from rayapp.client import Client, JobKind

    request = values(options or [])
    with Client(server, token=token) as client:
        job = client.start_job(JobKind.TRAIN, model, request, enqueue=enqueue)
        print(job["id"], flush=True)
        if wait:
            end(watch(client.follow(job["id"])))


def jobs(
    job: Annotated[
        str | None, typer.Argument(metavar="ID", help="Follow this one to its end; its beginning will do.")
    ] = None,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Show all jobs, oldest first, or follow one of them with what happened to it."""
    from rich.console import Console

    from rayapp.client import Client

    with Client(server, token=token) as client:
        found = client.jobs()
        if job is not None:
            whole = _meant(job, found)
            client.job(whole)  # an unknown one is told before a bar appears
            end(watch(client.follow(whole)))
            return
    Console().print(listed(found))


def listed(found: list[Job]) -> Table:
    """Jobs in a table that a terminal of 80 columns has room for."""
    from rich.table import Table

    table = Table("id", "job", "status", "progress", box=None, pad_edge=False)
    for column in table.columns[:3]:
        column.no_wrap = True
    shown = _shown([each["id"] for each in found])
    for each in found:
        kind = each["kind"].removesuffix("_infer")
        table.add_row(each["id"][:shown], f"{kind} {each['name']}", each["status"], _words(each, brief=True))
    return table


def _shown(ids: list[str]) -> int:
    """How many characters tell these ids apart."""
    return next((n for n in range(SHOWN, 64) if len({name[:n] for name in ids}) == len(ids)), 64)


def _meant(job: str, found: list[Job]) -> str:
    """The id that begins like this, or the text itself if there is none, or more than one."""
    ids = [each["id"] for each in found if each["id"].startswith(job)]
    return ids[0] if len(ids) == 1 else job


def values(options: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE texts as a request: a value that is JSON counts as what it says, any other as text."""
    request: dict[str, Any] = {}
    for option in options:
        key, found, text = option.partition("=")
        if not (key and found):
            raise WrongUsage(f"--set: {option!r} is not KEY=VALUE")
        try:
            request[key] = json.loads(text)
        except json.JSONDecodeError:
            request[key] = text
    return request


def watch(changes: Iterable[Job]) -> Job | None:
    """Show a bar and each new line of the details; the job's last state."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    last: Job | None = None
    said: list[str] = []
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[words]}")
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("waiting", total=None, words="")
        for last in changes:
            for line in last.get("details", []):
                if line not in said:
                    said.append(line)
                    console.print(line, highlight=False, markup=False)
            progress = last["progress"] or {}
            bars.update(
                bar,
                description=f"{last['name']} {last['status'].lower()}",
                completed=progress.get("iteration", 0),
                total=progress.get("iterations"),
                words=_words(last),
            )
    return last


def _words(job: Job, *, brief: bool = False) -> str:
    """How far it is; `brief` without how well the last step went."""
    progress = job["progress"]
    if not progress:
        return ""
    if progress["loss"] is None:
        words = [f"{progress['iteration']} of {progress['iterations']}{'' if brief else ' images'}"]
    else:
        loss = [] if brief else [f"loss {progress['loss']:.4f}"]
        words = [f"epoch {progress['epoch']}/{progress['epochs']}", *loss]
    figures = ("best",) if brief else ("metric", "best")
    words += [f"{name} {progress[name]:.4f}" for name in figures if progress[name] is not None]
    if progress["seconds_left"] is not None and "end_ts" not in job:
        words.append(f"{progress['seconds_left'] / 60:.{0 if brief else 1}f} min left")
    return ", ".join(words)


def end(job: Job | None) -> None:
    """Exit with 1 unless the job is done."""
    if job is None or job["status"] != "DONE":
        raise typer.Exit(1)
