"""`rayapp doctor`: the installation, the machine, and the planner's proposals for the machine and for studies."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.server import names, places

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from rayapp.planner.machine import Hardware
    from rayapp.planner.proposal import Proposal
    from rayapp.planner.studies import Studies
    from rayapp.planner.survey import Survey

GIB = 1 << 30
MIN_MEMORY = 4 * GIB
MIN_SHARED_MEMORY = 1 * GIB
MIN_DISK = 5 * GIB
MAX_LISTED = 8
"""Maximum number of structures, or of files with the same problem, that are listed; of more, the number is shown."""


def doctor(
    studies: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also survey the images in this folder and plan for them.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Read every labelled image, and name all that a training would refuse.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,…", help="With --all: the structures of the trainings, as of `rayapp start`."),
    ] = None,
) -> None:
    """Show versions, hardware, shipped models and flags for this machine; exit with status 1 if there is a problem."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    if every and studies is None:
        raise WrongUsage("--all: needs --studies, the folder of images to read")
    if labels is not None and not every:
        raise WrongUsage("--labels: needs --all, which reads the label maps")
    if studies is not None and not studies.is_dir():
        raise WrongUsage(f"--studies: there is no folder {studies}")
    console, errors = Console(), Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        inspecting = progress.add_task("inspecting the machine", total=None)
        from rayapp.planner.machine import hardware
        from rayapp.planner.studies import opened
        from rayapp.planner.survey import NothingReadable

        machine = hardware()
        models = shipped_models()
        progress.remove_task(inspecting)
        disk = shutil.disk_usage(Path.home()).free
        tables = [_machine(Table(show_header=False), machine, models, disk)]
        unusable: list[str] = []
        if studies is not None:
            with opened(studies) as read:
                try:
                    survey, proposals = _plan(read, machine, progress)
                    tables += [_survey(Table(show_header=False), survey), _proposals(Table(), proposals)]
                    found = survey.problems
                except NothingReadable as error:
                    found, unusable = error.problems, [f"--studies: {error.detail}"]
                if every:
                    flags = {"studies": studies, "labels": names(labels)}
                    wanted = places({name: value for name, value in flags.items() if value is not None}).labels
                    found = {**found, **refused_by_training(read, wanted, progress)}
            if found:
                tables.append(_problems(Table("in the studies", "problem"), found))
    for table in tables:
        console.print(table)
    lines = [*problems(machine.memory, machine.shared_memory, disk, models), *unusable]
    for line in lines:
        print(f"rayapp: {line}", file=sys.stderr)
    if lines:
        raise typer.Exit(1)


def problems(memory: int, shared_memory: int, disk: int, models: list[str]) -> list[str]:
    """Problems of this machine or installation, one line each.

    Args:
        memory: Memory in bytes.
        shared_memory: Shared memory in bytes.
        disk: Free disk space in bytes.
        models: The shipped models.
    """
    lines = []
    if memory < MIN_MEMORY:
        lines.append(f"{_gib(memory)} of memory is too little: the server needs at least {_gib(MIN_MEMORY)}")
    if shared_memory < MIN_SHARED_MEMORY:
        lines.append(f"{_gib(shared_memory)} of shared memory slows Ray down: in a container, use --shm-size=2g")
    if disk < MIN_DISK:
        lines.append(f"{_gib(disk)} of free disk is too little: the server needs at least {_gib(MIN_DISK)}")
    if not models:
        lines.append("the shipped models are missing: install rayapp again, or run `make weights`")
    return lines


def shipped_models() -> list[str]:
    """The models whose weights are part of the package."""
    folder = Path(__file__).parent.parent / "apps" / "radiology" / "weights"
    return sorted(path.stem for path in folder.glob("*.safetensors") if path.with_suffix(".json").is_file())


def _machine(table: Table, machine: Hardware, models: list[str], disk: int) -> Table:
    from rayapp.planner.replicas import plan

    chosen = plan(machine)
    table.add_row("Python", platform.python_version())
    for package in ("rayapp", "ray", "torch", "monai"):
        table.add_row(package, importlib.metadata.version(package))
    table.add_row("cores", str(machine.cores))
    table.add_row("memory", _gib(machine.memory))
    table.add_row("shared memory", _gib(machine.shared_memory))
    table.add_row("free disk", f"{_gib(disk)} in the home folder")
    table.add_row("GPUs", ", ".join(f"{gpu.name} ({_gib(gpu.memory)})" for gpu in machine.gpus) or "none")
    table.add_row("shipped models", ", ".join(models) or "none")
    table.add_row("networks run on", f"{chosen.device}, {chosen.precision}")
    for name, value in placement(machine):
        table.add_row(name, value)
    table.add_row("recommended flags", f"--replicas 1:{chosen.replicas} --num-cpus {chosen.cpus}")
    return table


def placement(machine: Hardware) -> Iterator[tuple[str, str]]:
    """The processes of a server on this machine, their numbers, and the resources of each, as rows of a table."""
    from rayapp.planner.replicas import node_of, plan
    from rayapp.planner.shares import scorers_on, shares, trainings_on

    chosen, node = plan(machine), node_of(machine)
    asked = shares([node])
    cache = f"{_gib(chosen.volume_cache)} of volumes"
    if chosen.prepared_cache is not None:
        cache += f", {_gib(chosen.prepared_cache)} of them prepared on the GPU"
    yield "each replica gets", f"{chosen.threads} threads, {cache}"
    counts = {
        "replicas": (chosen.replicas, asked.replica),
        "beside them: training": (trainings_on(node, asked), asked.training),
        "beside them: scoring": (scorers_on(node, asked.scorer, memory=machine.memory), asked.scorer),
    }
    for name, (count, resources) in counts.items():
        yield name, f"up to {count}, each {' and '.join(f'{amount:g} {kind}' for kind, amount in resources.items())}"
    if len(machine.gpus) > 1:
        yield "GPUs without a replica", "one training worker and one scoring worker each, or two of scoring"


def _plan(studies: Studies, machine: Hardware, progress: Progress) -> tuple[Survey, dict[str, Proposal]]:
    """Survey the studies, and propose a network for each method."""
    from rayapp.planner.proposal import KINDS, Method, propose
    from rayapp.planner.survey import survey_studies

    surveying = progress.add_task("surveying the images", total=None)
    survey = survey_studies(
        studies, progress=lambda done, total: progress.update(surveying, completed=done, total=total)
    )
    planning = progress.add_task("planning", total=len(KINDS))
    proposals: dict[str, Proposal] = {}
    for kind in KINDS:
        proposals[kind] = propose(survey, machine, Method.of(kind, len(survey.structures) or 1))
        progress.advance(planning)
    return survey, proposals


def _survey(table: Table, survey: Survey) -> Table:
    table.add_row("images", f"{survey.images}, {survey.labelled} with labels; headers of {survey.sampled} read")
    if survey.unreadable:
        table.add_row("not readable", f"{survey.unreadable} of the sample")
    if survey.intensities is None:
        table.add_row("values", "unknown: none of the sampled images could be decoded")
    else:
        low, middle, high = survey.intensities
        values = f"{low:g} to {high:g}, median {middle:g}"
        table.add_row("values", f"{survey.modality}, {survey.channels} channel(s), {values}")
    table.add_row("spacing, median", f"{by(survey.spacing)} mm along R, A, S")
    table.add_row("size, median", f"{by(survey.size)} voxels, 95 % within {by(survey.extent)} mm")
    if survey.foreground is not None:
        table.add_row("labels lie within", f"{by(survey.foreground)} mm")
        sizes = [f"{value}: {structure.volume:.3g} ml" for value, structure in survey.structures.items()]
        table.add_row("structures", ", ".join(sizes) if len(sizes) <= MAX_LISTED else str(len(sizes)))
    return table


def refused_by_training(studies: Studies, labels: Sequence[str], progress: Progress) -> dict[str, str]:
    """The reason why a training would refuse a labelled image, by the image's name; reads all of them.

    Args:
        studies: The images and their label maps.
        labels: The structures that are trained, in the order of their values; empty if any values may occur.
        progress: Shows how many images have been read.
    """
    from rayapp.training.cases import bad_pairs, read_pair
    from rayapp.training.train_task import Pair

    pairs = [Pair(image=image, label=label) for image, label in studies.labels.items()]
    reading = progress.add_task("reading every labelled image", total=len(pairs))

    def check(pair: Pair) -> None:
        progress.advance(reading)
        read_pair(pair, {name: value for value, name in enumerate(labels, start=1)} or None)

    return bad_pairs(pairs, check)


def _problems(table: Table, found: Mapping[str, str]) -> Table:
    from rich.text import Text

    for name, reason in grouped(found):
        table.add_row(Text(name), Text(reason))
    return table


def grouped(found: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The problems as rows of a table: of more than `MAX_LISTED` in one folder with the same reason, the first and the
    number of the others.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for name, reason in found.items():
        alike.setdefault((name.rpartition("/")[0], reason), []).append(name)
    for (_, reason), files in alike.items():
        if len(files) > MAX_LISTED:
            yield f"{files[0]} and {len(files) - 1} others there", reason
        else:
            yield from ((name, reason) for name in files)


def _proposals(table: Table, proposed: dict[str, Proposal]) -> Table:
    table.add_column("proposed")
    for kind in proposed:
        table.add_column(kind)

    row, proposals = table.add_row, list(proposed.values())
    networks = [dict(proposal.network) for proposal in proposals]
    row("spacing, mm", *(by(proposal.spacing) for proposal in proposals))
    row("ROI, voxels", *(by(proposal.roi_size) for proposal in proposals))
    row("network", *map(named, networks))
    row("strides", *(" ".join(by(stride).replace(" ", "") for stride in network["strides"]) for network in networks))
    row("window overlap", *(f"{proposal.overlap:g}" for proposal in proposals))
    row("precision", *(proposal.precision for proposal in proposals))
    row("batch size", *(str(proposal.train_batch_size) for proposal in proposals))
    row("training cache", *(_gib(proposal.cache) for proposal in proposals))
    row("memory: forward, step", *(f"{_gib(p.forward_memory)}, {_gib(p.step_memory)}" for p in proposals))
    if any(proposal.forward_seconds for proposal in proposals):
        row("seconds: forward, step", *(f"{p.forward_seconds:.2g}, {p.step_seconds:.2g}" for p in proposals))
    return table


def named(network: Mapping[str, Any]) -> str:
    """A network's class, and the channels of its finest and its coarsest level."""
    widths = network.get("filters") or network["channels"]
    return f"{network['name']} {widths[0]}..{widths[-1]}"


def by(numbers: object) -> str:
    """Numbers as `2 x 2 x 1`, with four significant digits."""
    parts = numbers if isinstance(numbers, (list, tuple)) else [numbers]
    return " x ".join(by(part) if isinstance(part, (list, tuple)) else f"{part:.4g}" for part in parts)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.0f} MiB"
