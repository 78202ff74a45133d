"""`rayapp train` and `rayapp jobs`: background jobs of a running server, with progress bars."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import Json, WrongUsage, print_json
from rayapp.commands.annotation import LOCAL, Server, Token

if TYPE_CHECKING:
    from rich.table import Table

    from rayapp.client import Job

Wait = Annotated[bool, typer.Option("--wait/--detach", help="Follow the job to its end, or only print its id.")]
MIN_ID = 8
"""Least number of characters of an id in a table."""


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A trainer that `/info/` lists.")],
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the trainer; may be repeated.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Minutes to train, instead of a number of epochs.")
    ] = None,
    wait: Wait = True,
    enqueue: Annotated[bool, typer.Option(help="Wait in the queue while another training is running.")] = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Train a model on the images that have a final label; exit with status 1 if the training fails or is stopped.

    Ctrl-C stops following the training, not the training itself.
    """
    from rayapp.client import Client, JobKind

    request = {**values(options or []), **({} if minutes is None else {"minutes": minutes})}
    with Client(server, token=token) as client:
        job = client.start_job(JobKind.TRAIN, model, request, enqueue=enqueue)
        print(job["id"], flush=True)
        if wait:
            end(watch(client.follow(job["id"])))


def batch(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the model; may be repeated.")
    ] = None,
    images: Annotated[str, typer.Option(metavar="WHICH", help="Images: unlabeled, labeled or all.")] = "unlabeled",
    wait: Wait = True,
    enqueue: Annotated[bool, typer.Option(help="Wait in the queue while another batch is running.")] = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Run a model on many images and save its masks under the tag `original`, to be corrected.

    Exit with status 1 if it fails or is stopped. Ctrl-C stops following the job, not the job itself.
    """
    from rayapp.client import Client, JobKind

    with Client(server, token=token) as client:
        job = client.start_job(JobKind.BATCH, model, values(options or []), enqueue=enqueue, images=images)
        print(job["id"], flush=True)
        if wait:
            end(watch(client.follow(job["id"])))


def jobs(
    job: Annotated[
        str | None, typer.Argument(metavar="ID", help="Follow this job to its end; a unique prefix is enough.")
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the job ID.")] = False,
    as_json: Json = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """List all jobs, oldest first, or follow or cancel one of them."""
    from rich.console import Console

    from rayapp.client import Client

    if cancel and job is None:
        raise WrongUsage("--cancel: needs the ID of a job, as `rayapp jobs` lists them")
    with Client(server, token=token) as client:
        all_jobs = client.jobs()
        if job is not None:
            job_id = _full_id(job, all_jobs)
            found = client.cancel_job(job_id) if cancel else client.job(job_id)  # fails for an unknown job
            if as_json:
                print_json(found)
            elif cancel:
                print(f"{found['name']}: {found['status'].lower()}")
            else:
                end(watch(client.follow(job_id)))
            return
    if as_json:
        print_json(all_jobs)
        return
    Console().print(table_of(all_jobs))


def table_of(all_jobs: list[Job]) -> Table:
    """A table of jobs that fits a terminal of 80 columns."""
    from rich.table import Table

    table = Table("id", "job", "status", "progress", box=None, pad_edge=False)
    for column in table.columns[:3]:
        column.no_wrap = True
    length = _unique_length([job["id"] for job in all_jobs])
    for job in all_jobs:
        kind = job["kind"].removesuffix("_infer")
        table.add_row(job["id"][:length], f"{kind} {job['name']}", job["status"], _progress_text(job, brief=True))
    return table


def _unique_length(ids: list[str]) -> int:
    """The number of leading characters that distinguish these ids."""
    return next((n for n in range(MIN_ID, 64) if len({name[:n] for name in ids}) == len(ids)), 64)


def _full_id(prefix: str, all_jobs: list[Job]) -> str:
    """The only id with this prefix; the prefix itself if there is no such id, or more than one."""
    ids = [job["id"] for job in all_jobs if job["id"].startswith(prefix)]
    return ids[0] if len(ids) == 1 else prefix


def values(options: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE texts as a request's options. Values that are JSON are parsed, all others are text."""
    request: dict[str, Any] = {}
    for option in options:
        key, separator, text = option.partition("=")
        if not (key and separator):
            raise WrongUsage(f"--set: {option!r} is not KEY=VALUE")
        try:
            request[key] = json.loads(text)
        except json.JSONDecodeError:
            request[key] = text
    return request


def watch(changes: Iterable[Job]) -> Job | None:
    """Follow a job with a progress bar and its log.

    Args:
        changes: The job's states.

    Returns:
        The last state.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    last: Job | None = None
    printed: list[str] = []
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[text]}")
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("waiting", total=None, text="")
        for last in changes:
            for line in last.get("details", []):
                if line not in printed:
                    printed.append(line)
                    console.print(line, highlight=False, markup=False)
            progress = last["progress"] or {}
            bars.update(
                bar,
                description=f"{last['name']} {last['status'].lower()}",
                completed=progress.get("iteration", 0),
                total=progress.get("iterations"),
                text=_progress_text(last),
            )
    return last


def _progress_text(job: Job, *, brief: bool = False) -> str:
    """A job's progress in words; `brief` leaves out the loss and the newest metric."""
    progress = job["progress"]
    if not progress:
        return ""
    if progress["loss"] is None:
        parts = [f"{progress['iteration']} of {progress['iterations']}{'' if brief else ' images'}"]
    else:
        loss = [] if brief else [f"loss {progress['loss']:.4f}"]
        parts = [f"epoch {progress['epoch']}/{progress['epochs']}", *loss]
    metrics = ("best",) if brief else ("metric", "best")
    parts += [f"{name} {progress[name]:.4f}" for name in metrics if progress[name] is not None]
    if progress["seconds_left"] is not None and "end_ts" not in job:
        parts.append(f"{progress['seconds_left'] / 60:.{0 if brief else 1}f} min left")
    return ", ".join(parts)


def end(job: Job | None) -> None:
    """Exit with status 1 unless the job is done."""
    if job is None or job["status"] != "DONE":
        raise typer.Exit(1)
