"""`rayapp simulate`: measures active learning strategies by simulated annotators, on images with reference labels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.annotation import LOCAL, Server, Token
from rayapp.commands.jobs import values

if TYPE_CHECKING:
    from rayapp.active_learning.outcome import Round
    from rayapp.active_learning.simulation import Simulation


Strategy = Annotated[str, typer.Argument(metavar="STRATEGY", help="A strategy that `/info/` lists.")]
References = Annotated[Path, typer.Option(metavar="DIR", help="Reference label maps, named as the server's images.")]
Validation = Annotated[
    Path, typer.Option(metavar="DIR", help="Folders `images` and `labels` with equal names, to test the model on.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results of this and other runs.")]
Model = Annotated[str, typer.Option(metavar="MODEL", help="Model to train.")]
Budgets = Annotated[
    str, typer.Option(metavar="N,N,…", help="Numbers of labelled images at which the model is trained.")
]
Annotators = Annotated[int, typer.Option(min=1, help="Number of concurrent annotators.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of annotators and training.")]
TrainerOptions = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the trainer; may be repeated.")
]
Iterations = Annotated[int, typer.Option(min=0, help="Iterations of each training; 0 leaves them to --set max_epochs.")]
Scoring = Annotated[
    str, typer.Option(metavar="METHOD", help="Scoring method to run after each training, if the strategy needs it.")
]
Strokes = Annotated[bool, typer.Option("--strokes", help="Correct by strokes instead of clicks.")]
ClickTime = Annotated[float, typer.Option(min=0, help="Seconds for a click.")]
StrokeTime = Annotated[float, typer.Option(min=0, help="Seconds for a stroke.")]
ReviewTime = Annotated[float, typer.Option(min=0, help="Seconds to review a proposal.")]
ManualTime = Annotated[float, typer.Option(min=0, help="Seconds to outline an image by hand.")]
GoodEnough = Annotated[float, typer.Option(min=0, max=1, help="Mean Dice score at which a mask is accepted.")]
MaxClicks = Annotated[int, typer.Option(min=0, help="Clicks or strokes before the rest is outlined by hand.")]
ClickNoise = Annotated[float, typer.Option(min=0, help="Standard deviation of their position, in voxels.")]


def simulate(
    strategy: Strategy,
    references: References,
    validation: Validation,
    out: Out,
    model: Model = "deepedit",
    budgets: Budgets = "2,4,8",
    annotators: Annotators = 1,
    seed: Seed = 0,
    options: TrainerOptions = None,
    iterations: Iterations = 0,
    scoring: Scoring = "",
    strokes: Strokes = False,
    click_s: ClickTime = 5.0,
    stroke_s: StrokeTime = 10.0,
    review_s: ReviewTime = 30.0,
    manual_s: ManualTime = 600.0,
    good_enough: GoodEnough = 0.9,
    max_clicks: MaxClicks = 10,
    click_noise: ClickNoise = 0.0,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Simulate active learning: annotators label a running server's images, and the model is trained and tested.

    The server's images get labels, so serve a copy of the studies, without labels. Writes parquet files, and
    `curves.png` of all runs in the folder, and recommends one of their strategies.
    """
    from rayapp.active_learning.annotator import AnnotationTimes
    from rayapp.active_learning.simulation import Simulation, SimulationProtocol
    from rayapp.client import AsyncClient

    times = AnnotationTimes(
        strokes=strokes,
        click_s=click_s,
        stroke_s=stroke_s,
        review_s=review_s,
        manual_s=manual_s,
        good_enough=good_enough,
        max_clicks=max_clicks,
        click_noise=click_noise,
    )
    protocol = SimulationProtocol(
        model=model,
        strategy=strategy,
        budgets=_numbers(budgets),
        annotators=annotators,
        seed=seed,
        times=times,
        training=values(options or []),
        iterations=iterations,
        scoring=scoring,
    )
    simulation = Simulation(
        connect=lambda name: AsyncClient(server, token=token, client_id=name),
        protocol=protocol,
        references=_by_name(references, "--references"),
        validation=_pairs(validation),
    )
    _run(simulation, protocol.budgets, out)


def _run(simulation: Simulation, budgets: Sequence[int], out: Path) -> None:
    """Run it, write its results even if it is interrupted, and show all results in the folder."""
    from rayapp.active_learning.outcome import draw, read_rounds

    try:
        asyncio.run(_watch(simulation, max(budgets)))
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
        raise WrongUsage(f"--budgets: must be numbers separated by commas, not {budgets!r}") from None


def _by_name(folder: Path, flag: str) -> dict[str, Path]:
    from rayapp.errors import Unreadable
    from rayapp.imaging.reader import split_ext

    if not folder.is_dir():
        raise WrongUsage(f"{flag}: there is no folder {folder.name}")
    files = {}
    for file in sorted(folder.iterdir()):
        try:
            files[split_ext(file.name)[0]] = file
        except Unreadable:
            continue
    return files


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    images, labels = (_by_name(folder / name, "--validation") for name in ("images", "labels"))
    return [(image, labels[name]) for name, image in images.items() if name in labels]


async def _watch(simulation: Simulation, total: int) -> None:
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
