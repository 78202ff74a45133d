"""`rayapp simulate`: what a strategy is worth on studies whose labels are known."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.annotation import LOCAL, Server, Token
from rayapp.commands.jobs import values

if TYPE_CHECKING:
    from rayapp.active_learning.outcome import Round
    from rayapp.active_learning.simulation import Simulation


def simulate(
    strategy: Annotated[str, typer.Argument(metavar="STRATEGY", help="As `/info/` lists it.")],
    references: Annotated[Path, typer.Option(metavar="DIR", help="A label map for each of the server's images.")],
    validation: Annotated[
        Path, typer.Option(metavar="DIR", help="`images` and `labels` of the same names, to test the model on.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results of this and other runs, and their picture.")],
    model: Annotated[str, typer.Option(metavar="MODEL")] = "deepedit",
    budgets: Annotated[str, typer.Option(metavar="N,N,…", help="Train when so many images are labelled.")] = "2,4,8",
    annotators: Annotated[int, typer.Option(min=1, help="So many at once.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the trainer; may be repeated.")
    ] = None,
    iterations: Annotated[int, typer.Option(min=0, help="Of each training; 0 leaves it to --set max_epochs.")] = 0,
    scoring: Annotated[str, typer.Option(metavar="METHOD", help="Score after each training, for the strategy.")] = "",
    strokes: Annotated[bool, typer.Option("--strokes", help="Draw lines instead of clicking.")] = False,
    click_s: Annotated[float, typer.Option(min=0, help="Seconds a click takes.")] = 5.0,
    stroke_s: Annotated[float, typer.Option(min=0, help="Seconds a stroke takes.")] = 10.0,
    review_s: Annotated[float, typer.Option(min=0, help="Seconds a look at a proposal takes.")] = 30.0,
    manual_s: Annotated[float, typer.Option(min=0, help="Seconds an image by hand takes.")] = 600.0,
    good_enough: Annotated[float, typer.Option(min=0, max=1, help="Mean Dice of a mask that is saved.")] = 0.9,
    max_clicks: Annotated[int, typer.Option(min=0, help="Clicks or strokes before the rest is done by hand.")] = 10,
    click_noise: Annotated[float, typer.Option(min=0, help="Voxels by which they miss their place.")] = 0.0,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Let simulated annotators label a running server's images, train as labels come, and test the model.

    The server's images get labels: give it a copy of the studies, without any. Writes parquet files and `curves.png`
    with all runs in the folder, and says which of their strategies to use.
    """
    from rayapp.active_learning.annotator import AnnotationTimes
    from rayapp.active_learning.outcome import draw, read_rounds
    from rayapp.active_learning.simulation import Simulation, SimulationProtocol
    from rayapp.client import AsyncClient

    when = _numbers(budgets)
    simulation = Simulation(
        connect=lambda name: AsyncClient(server, token=token, client_id=name),
        protocol=SimulationProtocol(
            model=model,
            strategy=strategy,
            budgets=when,
            annotators=annotators,
            seed=seed,
            times=AnnotationTimes(
                strokes=strokes,
                click_s=click_s,
                stroke_s=stroke_s,
                review_s=review_s,
                manual_s=manual_s,
                good_enough=good_enough,
                max_clicks=max_clicks,
                click_noise=click_noise,
            ),
            training=values(options or []),
            iterations=iterations,
            scoring=scoring,
        ),
        references=_by_name(references, "--references"),
        validation=_pairs(validation),
    )
    try:
        asyncio.run(_watched(simulation, max(when)))
    finally:
        if simulation.labels:
            simulation.write(out)
    rounds = read_rounds(out)
    draw(rounds, out / "curves.png")
    _show(rounds)


def _numbers(budgets: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in budgets.split(","))
    except ValueError:
        raise WrongUsage(f"--budgets: numbers with commas between, not {budgets!r}") from None


def _by_name(folder: Path, flag: str) -> dict[str, Path]:
    from rayapp.errors import Unreadable
    from rayapp.imaging.reader import split_ext

    if not folder.is_dir():
        raise WrongUsage(f"{flag}: there is no folder {folder.name}")
    found = {}
    for file in sorted(folder.iterdir()):
        try:
            found[split_ext(file.name)[0]] = file
        except Unreadable:
            continue
    return found


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    images, labels = (_by_name(folder / name, "--validation") for name in ("images", "labels"))
    return [(image, labels[name]) for name, image in images.items() if name in labels]


async def _watched(simulation: Simulation, total: int) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from rayapp.active_learning.annotator import Annotation

    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("labels", total=total)
        async for done in simulation.run():
            if isinstance(done, Annotation):
                bars.advance(bar)
            else:
                bars.console.print(f"{done.labels} labels, {done.minutes:.1f} min: validation Dice {done.dice:.3f}")


def _show(rounds: list[Round]) -> None:
    from rich.console import Console
    from rich.table import Table

    from rayapp.active_learning.outcome import advice, strategies_in, summary, target_dice

    table = Table("strategy", "labels", "minutes", "Dice", "seeds")
    for strategy in strategies_in(rounds):
        for row in summary(rounds, strategy):
            table.add_row(strategy, str(row.labels), f"{row.minutes:.1f}", str(row), str(row.seeds))
    console = Console()
    console.print(table)
    console.print(advice(rounds, target_dice(rounds)))
