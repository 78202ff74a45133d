"""Simulation of active learning: annotators label, the model is trained, and tested on held-out images.

It measures the value of a strategy as validation Dice score against the number of labels and against annotation
minutes. A run is one strategy with one seed, on a server whose images are unlabelled at the start. Its results are two
parquet files; `outcome` compares the runs of a folder.
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

from rayapp.active_learning.annotator import MAX_BYTES, Annotation, AnnotationTimes, Annotator, mean_dice
from rayapp.active_learning.outcome import ROUNDS, Round
from rayapp.active_learning.score_files import write_table
from rayapp.client import AsyncClient, Job, JobKind
from rayapp.errors import RayappError
from rayapp.imaging.reader import read_segmentation

SESSION_S = 24 * 3600
"""Seconds without use after which the server removes a validation image."""
LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class SimulationProtocol:
    """The course of a run: rounds of labelling, training, validation and scoring.

    Attributes:
        model: Name of the model.
        strategy: Name of the strategy.
        budgets: Numbers of labelled images after which the model is trained and validated.
        annotators: Number of annotators who work concurrently.
        seed: Seed of annotators and, where the trainer has this option, of training.
        times: The annotators' time model.
        training: Options of each training.
        iterations: Length of each training in iterations, whatever the number of images; 0 leaves it to the options.
        scoring: Scoring method to run after each training but the last; empty for strategies that need none.
        scoring_options: Options of the scoring method.
    """

    model: str
    strategy: str
    budgets: Sequence[int] = (2, 4, 8, 16, 32)
    annotators: int = 1
    seed: int = 0
    times: AnnotationTimes = field(default_factory=AnnotationTimes)
    training: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 0
    scoring: str = ""
    scoring_options: Mapping[str, Any] = field(default_factory=dict)


class Simulation:
    """One run."""

    def __init__(
        self,
        *,
        connect: Callable[[str], AsyncClient],
        protocol: SimulationProtocol,
        references: Mapping[str, Path],
        validation: Sequence[tuple[Path, Path]],
    ) -> None:
        """A run that has not started yet.

        Args:
            connect: Makes a client of the server for an annotator's name.
            protocol: The course of the run.
            references: Reference label maps of the server's images, by image id.
            validation: Held-out pairs of image and label map, which are uploaded to the server as sessions.
        """
        self._connect = connect
        self._protocol = protocol
        self._references = references
        self._validation = validation
        self.labels: list[Annotation] = []
        self.rounds: list[Round] = []

    async def run(self) -> AsyncIterator[Annotation | Round]:
        """Execute the run; it ends early when no image is left to label.

        Yields:
            Each annotation and each round, when it is complete.

        Raises:
            RayappError: As the server raises it, or if a job fails.
        """
        protocol = self._protocol
        async with AsyncExitStack() as stack:
            annotators = []
            for number in range(protocol.annotators):
                name = f"annotator-{number}"
                annotators.append(
                    Annotator(
                        name=name,
                        client=await stack.enter_async_context(self._connect(name)),
                        model=protocol.model,
                        references=self._references,
                        times=protocol.times,
                        rng=np.random.default_rng((protocol.seed, number)),
                    )
                )
            trainer = await stack.enter_async_context(self._connect("trainer"))
            sessions = [
                ((await trainer.create_session(image, expiry=SESSION_S))["session_id"], label)
                for image, label in self._validation
            ]
            for budget in sorted(protocol.budgets):
                quota = iter(range(budget - len(self.labels)))
                results: asyncio.Queue[Annotation | None] = asyncio.Queue()
                tasks = [asyncio.create_task(self._annotate(one, quota, results)) for one in annotators]
                before = len(self.labels)
                try:
                    for _ in range(len(annotators)):
                        while (annotation := await results.get()) is not None:
                            self.labels.append(annotation)
                            yield annotation
                finally:
                    for task in tasks:
                        task.cancel()
                await asyncio.gather(*tasks)
                if len(self.labels) > before:
                    yield await self._round(trainer, sessions)
                if len(self.labels) < budget:
                    return

    async def _annotate(
        self, annotator: Annotator, quota: Iterator[int], results: asyncio.Queue[Annotation | None]
    ) -> None:
        """Label images as long as the quota, which all annotators share, is not used up; None ends the results."""
        try:
            for _ in quota:
                annotation = await annotator.label_next(self._protocol.strategy)
                if annotation is None:
                    return
                results.put_nowait(annotation)
        finally:
            results.put_nowait(None)

    async def _round(self, client: AsyncClient, sessions: Sequence[tuple[str, Path]]) -> Round:
        """Train and validate the model, and score the unlabelled images if the protocol asks for it."""
        protocol = self._protocol
        trainer = (await client.info())["trainers"].get(protocol.model, {})
        options = {**({"seed": protocol.seed} if "seed" in trainer.get("config", {}) else {}), **protocol.training}
        if protocol.iterations:
            options["max_epochs"] = max(1, protocol.iterations // len(self.labels))
        began = asyncio.get_running_loop().time()
        await _wait_for(client, await client.start_job(JobKind.TRAIN, protocol.model, options, enqueue=True))
        training_s = asyncio.get_running_loop().time() - began
        scores, version = [], ""
        for session, label in sessions:
            result = await client.infer_box(protocol.model, session=session)
            truth = await asyncio.to_thread(read_segmentation, label, max_bytes=MAX_BYTES)
            scores.append(await asyncio.to_thread(mean_dice, result.labels(), truth.array))
            version = str(result.params.get("model_version", ""))
        completed = Round(
            strategy=protocol.strategy,
            seed=protocol.seed,
            labels=len(self.labels),
            minutes=sum(label.seconds for label in self.labels) / 60,
            version=version,
            dice=float(np.mean(scores)) if scores else float("nan"),
            training_s=training_s,
        )
        self.rounds.append(completed)
        if protocol.scoring and completed.labels < max(protocol.budgets):
            request = {"model": protocol.model, **protocol.scoring_options}
            await _wait_for(client, await client.start_job(JobKind.SCORING, protocol.scoring, request, enqueue=True))
        return completed

    def write(self, folder: Path) -> None:
        """Write `<strategy>-<seed>.labels.parquet` and `<strategy>-<seed>.rounds.parquet`."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._protocol.strategy}-{self._protocol.seed}"
        for kind, rows in ((LABELS, self.labels), (ROUNDS, self.rounds)):
            table = pa.Table.from_pylist([{**dataclasses.asdict(row), "seed": self._protocol.seed} for row in rows])
            write_table(table, folder / f"{name}.{kind}.parquet")


async def _wait_for(client: AsyncClient, job: Job) -> None:
    """Wait for a job's end.

    Raises:
        RayappError: If the job fails or is stopped.
    """
    ended = [state async for state in client.follow(job["id"])][-1]
    if ended["status"] != "DONE":
        raise RayappError(f"job {job['id']} ended with {ended['status']}: {'; '.join(ended.get('details', ()))}")
