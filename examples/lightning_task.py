"""A TrainTask that runs a PyTorch Lightning module.

Network design, data split, reading and augmentation come from `BasicTrainTask`; the training loop is that of
Lightning's `Trainer`. Before each step the module checks whether the job was cancelled; a callback reports progress
after each step and a checkpoint after each epoch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.dataset import Examples, result_of, stacked
from rayapp.models.networks import build
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.design import Design
from rayapp.training.options import Options
from rayapp.training.train_task import Host, Progress, TrainRequest, TrainResult

CHECKPOINT = "last.ckpt"


class Segmenter(pl.LightningModule):
    """The network with its loss and optimiser.

    Attributes:
        network: The network.
        stopped: True once the job was cancelled.
    """

    def __init__(self, task: BasicTrainTask[Options], design: Design, options: Options, host: Host) -> None:
        super().__init__()
        self.network = build(design.network)
        self.stopped = False
        self._loss = task.loss()
        self._task, self._options, self._host = task, options, host

    def on_train_batch_start(self, *_: Any) -> int | None:
        """Skip the rest of the epoch and all later epochs if the job was cancelled."""
        if not self._host.stopped():
            return None
        self.stopped = self.trainer.should_stop = True
        return -1

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """The loss of one batch."""
        return self._loss(self.network(batch["image"]), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that the task chooses."""
        return self._task.optimizer(self.network, self._options)


class HostReports(pl.Callback):
    """Reports progress and checkpoints to the host."""

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder, self._loss = host, folder, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, outputs: Any, *__: Any) -> None:
        """Report progress."""
        self._loss = float(outputs["loss"])
        self._host.report(self._progress(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Segmenter) -> None:
        """Report a checkpoint, from which an interrupted run resumes."""
        if not module.stopped:
            self._folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(self._folder / CHECKPOINT)
            self._host.report(self._progress(trainer), checkpoint=self._folder)

    def _progress(self, trainer: pl.Trainer) -> Progress:
        return Progress(
            epoch=trainer.current_epoch + 1,
            epochs=int(trainer.max_epochs or 1),
            iteration=trainer.global_step,
            iterations=int(trainer.estimated_stepping_batches),
            loss=self._loss,
        )


class LightningTrainTask(BasicTrainTask[Options]):
    """Automatic segmentation, trained by Lightning in one worker."""

    def train(self, request: TrainRequest, host: Host) -> TrainResult | None:
        """Train a network; see `TrainTask.train`."""
        started, design = time.time(), self.design(request.pairs, request.params, device=host.device)
        options = self.options.over(request.params).planned(design.plan)
        train, val = self.partition(request.pairs, options)
        request.folder.mkdir(parents=True, exist_ok=True)
        pl.seed_everything(options.seed, verbose=False)
        module = Segmenter(self, design, options, host)
        trainer = pl.Trainer(
            accelerator="gpu" if host.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=options.max_epochs,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=5.0,
            callbacks=[HostReports(host, request.folder / "checkpoint")],
            default_root_dir=request.folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        examples = Examples(self, train, design, options)
        batches = DataLoader(examples, options.train_batch_size, shuffle=True, collate_fn=stacked)
        resumed = host.resume()
        trainer.fit(module, batches, ckpt_path=None if resumed is None else resumed / CHECKPOINT, weights_only=True)
        if module.stopped:
            return None
        return result_of(
            self,
            request,
            design,
            module.network,
            pairs=val,
            epochs=trainer.current_epoch,
            iterations=trainer.global_step,
            started=started,
        )
