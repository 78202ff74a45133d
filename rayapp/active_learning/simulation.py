"""Simulation: annotators label, the model learns, and the model is tested on images that nobody labels.

It says what a strategy is worth: validation Dice against the number of labels and against annotation minutes. One run
is one strategy and one seed on one server whose images are unlabelled at the start; its results are two parquet files,
and `outcome` says what all runs in a folder come to.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayapp.active_learning.annotator import MAX_BYTES, AnnotationTimes, Annotator, Labelled, mean_dice
from rayapp.active_learning.outcome import ROUNDS, Round
from rayapp.active_learning.score_files import write_table
from rayapp.client import AsyncClient, Job, JobKind
from rayapp.errors import RayappError
from rayapp.imaging.reader import read_segmentation

SESSION_S = 24 * 3600
"""Seconds that the server keeps a validation image which nobody asks for."""
LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a run does. The model is trained, and validated, each time that so many images as one of `budgets` are
    labelled, and then the unlabelled images are scored if the strategy needs it (`scoring`, a method's name).

    `training` and `scoring_options` are requests; `iterations`, when it is not 0, makes each training that long,
    whatever number of images there is to learn from.
    """

    model: str
    strategy: str
    budgets: Sequence[int] = (2, 4, 8, 16, 32)
    annotators: int = 1
    seed: int = 0
    habits: AnnotationTimes = field(default_factory=AnnotationTimes)
    training: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 0
    scoring: str = ""
    scoring_options: Mapping[str, Any] = field(default_factory=dict)


class Simulation:
    """One run.

    Args:
        connect: makes a client of the server for an annotator's name.
        references: label maps of the server's images, by image id.
        validation: pairs of image and label map, which are sent to the server as sessions.
    """

    def __init__(
        self,
        *,
        connect: Callable[[str], AsyncClient],
        protocol: Protocol,
        references: Mapping[str, Path],
        validation: Sequence[tuple[Path, Path]],
    ) -> None:
        self._connect = connect
        self._protocol = protocol
        self._references = references
        self._validation = validation
        self.labels: list[Labelled] = []
        self.rounds: list[Round] = []

    async def run(self) -> AsyncIterator[Labelled | Round]:
        """Each label and each round as it is done; ends early when no image is left.

        Raises what the server says; RayappError for a training that fails.
        """
        protocol = self._protocol
        async with AsyncExitStack() as stack:
            team = []
            for number in range(protocol.annotators):
                name = f"annotator-{number}"
                team.append(
                    Annotator(
                        name=name,
                        client=await stack.enter_async_context(self._connect(name)),
                        model=protocol.model,
                        references=self._references,
                        habits=protocol.habits,
                        rng=np.random.default_rng((protocol.seed, number)),
                    )
                )
            overseer = await stack.enter_async_context(self._connect("overseer"))
            sessions = [(await overseer.create_session(i, expiry=SESSION_S), label) for i, label in self._validation]
            for budget in sorted(protocol.budgets):
                tickets = iter(range(budget - len(self.labels)))
                results: asyncio.Queue[Labelled | None] = asyncio.Queue()
                working = [asyncio.create_task(self._work(one, tickets, results)) for one in team]
                before = len(self.labels)
                try:
                    for _ in range(len(team)):
                        while (done := await results.get()) is not None:
                            self.labels.append(done)
                            yield done
                finally:
                    for task in working:
                        task.cancel()
                await asyncio.gather(*working)
                if len(self.labels) > before:
                    yield await self._round(overseer, [(session["session_id"], label) for session, label in sessions])
                if len(self.labels) < budget:
                    return

    async def _work(
        self, annotator: Annotator, tickets: Iterator[int], results: asyncio.Queue[Labelled | None]
    ) -> None:
        try:
            for _ in tickets:
                done = await annotator.label_next(self._protocol.strategy)
                if done is None:
                    return
                results.put_nowait(done)
        finally:
            results.put_nowait(None)

    async def _round(self, client: AsyncClient, sessions: Sequence[tuple[str, Path]]) -> Round:
        protocol = self._protocol
        options = {"seed": protocol.seed, **protocol.training}
        if protocol.iterations:
            options["max_epochs"] = max(1, protocol.iterations // len(self.labels))
        began = asyncio.get_running_loop().time()
        await _ended(client, await client.start_job(JobKind.TRAIN, protocol.model, options, enqueue=True))
        trained = asyncio.get_running_loop().time() - began
        scores, version = [], ""
        for session, label in sessions:
            result = await client.infer_box(protocol.model, session=session)
            truth = await asyncio.to_thread(read_segmentation, label, max_bytes=MAX_BYTES)
            scores.append(await asyncio.to_thread(mean_dice, result.labels(), truth.array))
            version = str(result.params.get("model_version", ""))
        made = Round(
            strategy=protocol.strategy,
            seed=protocol.seed,
            labels=len(self.labels),
            minutes=sum(label.seconds for label in self.labels) / 60,
            version=version,
            dice=float(np.mean(scores)) if scores else float("nan"),
            training_s=trained,
        )
        self.rounds.append(made)
        if protocol.scoring and made.labels < max(protocol.budgets):
            asked = {"model": protocol.model, **protocol.scoring_options}
            await _ended(client, await client.start_job(JobKind.SCORING, protocol.scoring, asked, enqueue=True))
        return made

    def write(self, folder: Path) -> None:
        """Write `<strategy>-<seed>.labels.parquet` and `….rounds.parquet`."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._protocol.strategy}-{self._protocol.seed}"
        for kind, rows in ((LABELS, self.labels), (ROUNDS, self.rounds)):
            table = pa.Table.from_pylist([{**dataclasses.asdict(row), "seed": self._protocol.seed} for row in rows])
            write_table(table, folder / f"{name}.{kind}.parquet")


async def _ended(client: AsyncClient, job: Job) -> None:
    """Wait for a job. Raises RayappError if it does not end well."""
    seen = [now async for now in client.follow(job["id"])][-1]
    if seen["status"] != "DONE":
        raise RayappError(f"job {job['id']} ended as {seen['status']}: {'; '.join(seen.get('details', ()))}")
