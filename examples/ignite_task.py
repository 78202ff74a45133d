"""A TrainTask that runs MONAI's SupervisedTrainer, on PyTorch Ignite.

Network design, data split, reading and augmentation come from `BasicTrainTask`; the training loop is the engine's. Two
handlers connect it to the host: one stops the engine when the job is cancelled, one reports progress. For what engines
and handlers can do besides, see the documentation of MONAI and Ignite.
"""

from __future__ import annotations

import time

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader

from examples.dataset import Examples, result_of, stacked
from rayapp.models.networks import build
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.options import Options
from rayapp.training.train_task import Host, Progress, TrainRequest, TrainResult


class IgniteTrainTask(BasicTrainTask[Options]):
    """Automatic segmentation, trained by MONAI's engine in one worker; an interrupted run starts from the beginning."""

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """Train a network; see `TrainTask.train`."""
        started, design = time.time(), self.design(request.pairs, request.params, device=host.device)
        options = self.options.over(request.params).planned(design.plan)
        train, val = self.partition(request.pairs, options)
        request.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(options.seed)
        network = build(design.network).to(host.device)
        examples = Examples(self, train, design, options)
        batches = DataLoader(examples, options.train_batch_size, shuffle=True, collate_fn=stacked)
        trainer = SupervisedTrainer(
            device=host.device,
            max_epochs=options.max_epochs,
            train_data_loader=batches,
            network=network,
            optimizer=self.optimizer(network, options),
            loss_function=self.loss(),
        )
        stopped = False

        @trainer.on(Events.ITERATION_STARTED)
        def stop_if_cancelled(engine: Engine) -> None:
            nonlocal stopped
            if host.stopped():
                stopped = True
                engine.interrupt()

        @trainer.on(Events.ITERATION_COMPLETED)
        def report_progress(engine: Engine) -> None:
            state = engine.state
            host.report(
                Progress(
                    epoch=state.epoch,
                    epochs=options.max_epochs,
                    iteration=state.iteration,
                    iterations=options.max_epochs * len(batches),
                    loss=float(state.output[0]["loss"]),
                )
            )

        trainer.run()
        if stopped:
            return None
        return result_of(
            self,
            request,
            design,
            network,
            pairs=val,
            epochs=trainer.state.epoch,
            iterations=trainer.state.iteration,
            started=started,
        )
