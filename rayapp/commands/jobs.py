"""`rayapp train` and `rayapp jobs`: background work of a running server, with live bars."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.annotation import LOCAL, Server, Token

if TYPE_CHECKING:
    from rayapp.client import Job


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
    job: Annotated[str | None, typer.Argument(metavar="ID", help="Follow this one to its end.")] = None,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Show all jobs, oldest first, or follow one of them with what happened to it."""
    from rich.console import Console
    from rich.table import Table

    from rayapp.client import Client

    with Client(server, token=token) as client:
        if job is not None:
            client.job(job)  # an unknown one is told before a bar appears
            end(watch(client.follow(job)))
            return
        found = client.jobs()
    table = Table("id", "job", "status", "progress", box=None)
    for column in table.columns[:3]:
        column.no_wrap = True
    for each in found:
        table.add_row(each["id"], f"{each['kind']} {each['name']}", each["status"], _words(each))
    Console().print(table)


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


def _words(job: Job) -> str:
    progress = job["progress"]
    if not progress:
        return ""
    if progress["loss"] is None:
        words = [f"{progress['iteration']} of {progress['iterations']} images"]
    else:
        words = [f"epoch {progress['epoch']}/{progress['epochs']}", f"loss {progress['loss']:.4f}"]
    words += [f"{name} {progress[name]:.4f}" for name in ("metric", "best") if progress[name] is not None]
    if progress["seconds_left"] is not None and "end_ts" not in job:
        words.append(f"{progress['seconds_left'] / 60:.1f} min left")
    return ", ".join(words)


def end(job: Job | None) -> None:
    """Exit with 1 unless the job is done."""
    if job is None or job["status"] != "DONE":
        raise typer.Exit(1)
