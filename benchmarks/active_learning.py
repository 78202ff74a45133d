"""What each strategy is worth: python -m benchmarks.active_learning [--quick] [--json] [--out DIR]

A pool of 100 unlabelled hippocampi of the Medical Segmentation Decathlon in `../shared/data/hippocampus`, 40 others to
validate with. For each strategy and seed a server of its own is started on the pool; simulated annotators ask it for
images, label them (`rayapp.active_learning.annotator`), and the model is trained from scratch at each budget, always
for as many iterations; then the images are scored anew. Prints validation Dice by number of labels with the standard
deviation of the mean over seeds, the labels with which a strategy first reaches 95 % of the Dice of all 100 labels (one
run, as long), and annotation minutes by then. `--out` keeps the parquet files and `curves.png`.

`--quick` is one seed, four strategies and budgets of 2, 4 and 8: it shows that all works, not which strategy is best.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.server import server
from benchmarks.train_hippocampus import DATA, LABELS, halves, hippocampi
from rayapp.active_learning.annotator import Habits
from rayapp.active_learning.simulation import Protocol, Round, Simulation, draw, rounds_in, summary
from rayapp.client import AsyncClient

POOL = 100
ENOUGH = 0.95
MODEL = "segmentation"
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


def run(strategy: str, seed: int, budgets: tuple[int, ...], iterations: int, out: Path) -> list[Round]:
    """One run on a server of its own."""
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
                protocol=Protocol(
                    model=MODEL,
                    strategy=strategy,
                    budgets=budgets,
                    seed=seed,
                    habits=Habits(good_enough=1.0, max_clicks=0),
                    training={"pretrained": False, "guard": False, "val_interval": 1000},
                    iterations=iterations,
                    scoring=SCORING[strategy],
                ),
                references={pair.image.name.removesuffix(".nii.gz"): pair.label for pair in pool},
                validation=[(pair.image, pair.label) for pair in held],
            )
            asyncio.run(_watched(simulation, f"{strategy} {seed}", max(budgets)))
    simulation.write(out)
    return simulation.rounds


async def _watched(simulation: Simulation, title: str, total: int) -> None:
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task(title, total=total)
        async for _ in simulation.run():
            bars.update(bar, completed=len(simulation.labels))


def table(rounds: list[Round], full: float) -> list[dict[str, Any]]:
    """A row for each strategy."""
    rows = []
    for strategy in dict.fromkeys(one.strategy for one in rounds):
        means = summary(rounds, strategy)
        enough = next((mean for mean in means if mean.dice >= ENOUGH * full), None)
        rows.append(
            {
                "strategy": strategy,
                **{str(mean.labels): f"{mean.dice:.3f} ± {mean.error:.3f}" for mean in means},
                "labels to 95 %": enough.labels if enough else None,
                "minutes to 95 %": round(enough.minutes, 1) if enough else None,
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"there are no hippocampi in {DATA}")
    strategies, seeds, budgets = tuple(SCORING), options.seeds, (2, 4, 8, 16, 32)
    iterations = options.iterations
    if options.quick:
        strategies, seeds, budgets, iterations = QUICK, 1, (2, 4, 8), min(iterations, 60)
    with tempfile.TemporaryDirectory(prefix="learned") as name:
        out = options.out or Path(name)
        for seed in range(seeds):
            for strategy in strategies:
                run(strategy, seed, budgets, iterations, out)
        (full,) = run("random", 0, (POOL,), iterations, Path(name) / "full")
        rounds = rounds_in(out)
        draw(rounds, out / "curves.png")
    rows = table(rounds, full.dice)
    if options.json:
        print(json.dumps({"full": full.dice, "iterations": iterations, "rows": rows}))
        return
    shown = Table(*rows[0], title=f"validation Dice by labels; all {POOL}: {full.dice:.3f}")
    for row in rows:
        shown.add_row(*(str(value) for value in row.values()))
    Console().print(shown)


if __name__ == "__main__":
    main()
