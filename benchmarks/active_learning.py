"""Active learning strategies: python -m benchmarks.active_learning [--quick] [--json] [--out DIR] [--together N]

The pool is 100 unlabelled hippocampi of the Medical Segmentation Decathlon in `../shared/data/hippocampus`; 40 others
are for validation. For each strategy and seed a server is started on the pool. Simulated annotators request images and
label them (`rayapp.active_learning.annotator`). At each labelling budget the model is trained from the previous version
for a constant number of iterations, and the images are scored anew. Prints validation Dice by number of labels with the
standard error of the mean over seeds; the number of labels with which a strategy first reaches 95 % of the Dice of all
100 labels (from one run, as long as all trainings of a strategy together); and annotation minutes until then. Network
spacing is 1.5 mm instead of 1 mm, which halves training time.

Runs are separate processes, `--together` of them at a time, since a second thread hardly speeds up training. `--out`
keeps the parquet files, `curves.png` and `table.txt`; the latter two are updated after each run. Existing results are
not computed again, so that an interrupted benchmark resumes. The run with all 100 labels comes first and further seeds
last, so that partial results can be compared.

`--quick` runs one seed, four strategies and budgets of 2, 4 and 8, as a check that everything works; it does not tell
which strategy is best.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.server import server
from benchmarks.train_hippocampus import HIPPOCAMPUS, LABELS, halves, hippocampi
from rayapp.active_learning.annotator import AnnotationTimes
from rayapp.active_learning.outcome import TARGET_SHARE, Round, advice, draw, read_rounds, standings, summary
from rayapp.active_learning.simulation import Simulation, SimulationProtocol
from rayapp.client import AsyncClient

POOL = 100
FULL = "full"
"""Folder of the run with all labels."""
MODEL = "segmentation"
SPACING_MM = 1.5
SCORING = {
    "random": "",
    "foreground_random": "epistemic",
    "tta": "tta",
    "epistemic": "epistemic",
    "entropy": "epistemic",
    "diverse": "epistemic",
    "first": "",
}
QUICK = ("random", "foreground_random", "epistemic", "diverse")


def run(strategy: str, seed: int, budgets: tuple[int, ...], iterations: int, out: Path) -> None:
    """Run one strategy with one seed on a server of its own, and write the results into `out`."""
    train, held = halves(hippocampi())
    pool = [train[n] for n in np.random.default_rng(1).permutation(len(train))[:POOL]]
    with tempfile.TemporaryDirectory(prefix="learning") as name:
        studies = Path(name) / "studies"
        studies.mkdir()
        for pair in pool:
            (studies / pair.image.name).symlink_to(pair.image)
        flags = ("--models", MODEL, "--labels", ",".join(LABELS))
        with server(Path(name), *flags) as url:
            simulation = Simulation(
                connect=lambda name: AsyncClient(url, client_id=name),
                protocol=SimulationProtocol(
                    model=MODEL,
                    strategy=strategy,
                    budgets=budgets,
                    seed=seed,
                    times=AnnotationTimes(good_enough=1.0, max_clicks=0),
                    training={"spacing": SPACING_MM, "guard": False, "val_interval": 1000},
                    iterations=iterations,
                    scoring=SCORING[strategy],
                ),
                references={pair.image.name.removesuffix(".nii.gz"): pair.label for pair in pool},
                validation=[(pair.image, pair.label) for pair in held],
            )
            asyncio.run(_watched(simulation, f"{strategy} {seed}", max(budgets)))
    simulation.write(out)


async def _watched(simulation: Simulation, title: str, total: int) -> None:
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task(title, total=total)
        async for done in simulation.run():
            bars.update(bar, completed=len(simulation.labels))
            if isinstance(done, Round):
                bars.console.print(
                    f"{title}: {done.labels} labels, Dice {done.dice:.3f}, trained in {done.training_s:.0f} s"
                )


async def run_all(todo: Sequence[tuple[str, int]], out: Path, together: int) -> None:
    """Run strategies and seeds, each in a process of its own; results are written after each."""
    places = asyncio.Semaphore(together)
    command = (sys.executable, "-m", "benchmarks.active_learning", *sys.argv[1:], "--out", str(out))

    async def one(strategy: str, seed: int) -> None:
        async with places:
            process = await asyncio.create_subprocess_exec(*command, "--only", strategy, str(seed))
            try:
                if await process.wait():
                    raise SystemExit(f"the run of {strategy} with seed {seed} failed")
            finally:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()
            tell(out)

    async with asyncio.TaskGroup() as runs:
        for strategy, seed in todo:
            runs.create_task(one(strategy, seed))


def missing(strategies: Sequence[str], seeds: int, out: Path) -> list[tuple[str, int]]:
    """Runs (strategy, seed) whose results are not in the folder yet."""
    found = {(one.strategy, one.seed) for one in read_rounds(out)}
    return [(strategy, seed) for seed in range(seeds) for strategy in strategies if (strategy, seed) not in found]


def rows_of(rounds: list[Round], full: float) -> list[dict[str, Any]]:
    """A row for each strategy, best first."""
    rows = []
    for one in standings(rounds, TARGET_SHARE * full):
        rows.append(
            {
                "strategy": one.strategy,
                **{str(mean.labels): str(mean) for mean in summary(rounds, one.strategy)},
                "mean": str(one),
                "labels to 95 %": None if one.labels is None else round(one.labels, 1),
                "minutes to 95 %": None if one.minutes is None else round(one.minutes),
            }
        )
    return rows


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--together", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs=2, metavar=("STRATEGY", "SEED"), help="only this run")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped too
    if not HIPPOCAMPUS.is_dir():
        sys.exit(f"{HIPPOCAMPUS} does not exist: it must contain the Decathlon's hippocampus task")
    strategies, seeds, budgets = tuple(SCORING), options.seeds, (2, 4, 8, 16, 32)
    iterations = options.iterations
    if options.quick:
        strategies, seeds, budgets, iterations = QUICK, 1, (2, 4, 8), min(iterations, 60)
    with tempfile.TemporaryDirectory(prefix="learned") as name:
        out = options.out or Path(name)
        begin(out, {"budgets": list(budgets), "iterations": iterations})
        if options.only:
            run(options.only[0], int(options.only[1]), budgets, iterations, out)
            return
        if not read_rounds(out / FULL):
            run("random", 0, (POOL,), iterations * len(budgets), out / FULL)
        asyncio.run(run_all(missing(strategies, seeds, out), out, options.together))
        if options.json:
            (full,), rounds = read_rounds(out / FULL), read_rounds(out)
            print(json.dumps({"full": full.dice, "iterations": iterations, "rows": rows_of(rounds, full.dice)}))
        else:
            print(tell(out))


def begin(out: Path, settings: dict[str, Any]) -> None:
    """Create the folder, or check that its results were computed with the same settings."""
    out.mkdir(parents=True, exist_ok=True)
    note = out / "settings.json"
    if not note.exists():
        note.write_text(json.dumps(settings))
    elif json.loads(note.read_text()) != settings:
        sys.exit(f"{out} has results of other settings: {note.read_text()}; choose another folder")


def tell(out: Path) -> str:
    """Write the plot and the table of a folder's runs; returns the table."""
    (full,), rounds = read_rounds(out / FULL), read_rounds(out)
    draw(rounds, out / "curves.png")
    rows = rows_of(rounds, full.dice)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    shown = Table(*columns, title=f"validation Dice by labels; all {POOL}: {full.dice:.3f}")
    for row in rows:
        shown.add_row(*(str(row.get(column, "")) for column in columns))
    console = Console(width=170)
    with console.capture() as captured:
        console.print(shown)
        console.print(advice(rounds, TARGET_SHARE * full.dice))
    (out / "table.txt").write_text(captured.get())
    return captured.get()


if __name__ == "__main__":
    main()
