"""`rayapp plan`: the planner's choices for a folder of studies, on this machine or another, with the reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.doctor import by, named, placement

if TYPE_CHECKING:
    from rich.table import Table

    from rayapp.planner.machine import Hardware
    from rayapp.planner.proposal import Proposal

CHOICES = ("spacing", "roi_size", "network", "train_batch_size", "precision", "intensities", "overlap")


def plan(
    studies: Annotated[Path, typer.Option(metavar="DIR", help="Folder of images, with any labels they have.")],
    model: Annotated[
        str | None, typer.Option(help="Plan for one of segmentation, deepedit, deepgrow_2d and deepgrow_3d.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Plan for another device than this machine's: cpu, or a GPU such as A100-80.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of such GPUs.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a server would start on the machine, and the network, grid and batch that a training would use, each
    with the reason. Nothing is started or trained.
    """
    from rich.console import Console
    from rich.table import Table

    from rayapp.planner.machine import GPUS, hardware, with_device
    from rayapp.planner.proposal import KINDS, Method, propose
    from rayapp.planner.survey import survey_folder

    if not studies.is_dir():
        raise WrongUsage(f"--studies: there is no folder {studies}")
    if model is not None and model not in KINDS:
        raise WrongUsage(f"--model: {model!r} is none of {', '.join(KINDS)}")
    machine = hardware()
    if device is not None:
        try:
            machine = with_device(machine, device, gpus)
        except KeyError:
            raise WrongUsage(f"--device: {device!r} is none of cpu, {', '.join(GPUS)}") from None
    survey = survey_folder(studies)
    structures = len(survey.structures) or 1
    proposals = {kind: propose(survey, machine, Method.of(kind, structures)) for kind in KINDS if model in (None, kind)}
    if as_json:
        plans = {kind: asdict(proposal) for kind, proposal in proposals.items()}
        placed = dict(placement(machine))
        told = {"survey": asdict(survey), "machine": asdict(machine), "placement": placed, "plans": plans}
        print(json.dumps(told, indent=2))
        return
    console = Console()
    console.print(f"{survey.images} images, {survey.labelled} with labels; {_said(machine)}")
    shares = Table("placement", "each asks Ray for")
    for name, value in placement(machine):
        shares.add_row(name, value)
    console.print(shares)
    for kind, proposal in proposals.items():
        console.print(_table(Table(kind, "choice", "why"), proposal))


def _said(machine: Hardware) -> str:
    gpus = ", ".join(f"{gpu.name} ({gpu.memory >> 30} GiB)" for gpu in machine.gpus)
    return f"{machine.cores} cores, {machine.memory >> 30} GiB, {gpus or 'no GPU'}"


def _table(table: Table, proposal: Proposal) -> Table:
    for name, value in _choices(proposal):
        table.add_row(name.replace("_", " "), value, proposal.why.get(name, ""))
    return table


def _choices(proposal: Proposal) -> Iterator[tuple[str, str]]:
    for name in CHOICES:
        value: Any = getattr(proposal, name)
        if name == "network":
            yield name, named(value)
        elif value is None or isinstance(value, str):
            yield name, value or "-"
        else:
            yield name, by(value)
