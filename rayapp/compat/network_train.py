"""`BasicTrainTask` of MONAI Label's apps: MONAI's engines around the app's network, transforms and loss."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data import (
    CacheDataset,
    DataLoader,
    Dataset,
    PersistentDataset,
    get_track_meta,
    partition_dataset,
    set_track_meta,
)
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import EarlyStopHandler, StatsHandler, ValidationHandler
from monai.inferers import SimpleInferer
from monai.transforms import Compose

from rayapp.compat.app_functions import device_list
from rayapp.compat.engine_run import Context, Run, copied
from rayapp.compat.peer_tasks import TrainTask
from rayapp.compat.region_metrics import mean_dice
from rayapp.models.weights import read_weights


class BasicTrainTask(TrainTask):
    """A trainer whose hooks give network, optimizer, loss and transforms. See MONAI Label for each of them.

    Args:
        model_dir: Not written to; a run has a folder of its own.
        description: One line for people.
        config: Options of a request, with their defaults.
        amp: Compute in float16 where that helps, on a GPU.
        load_path: Weights to begin with, if the model has no version yet.
        publish_path: The file that the model is served from; models with it among their paths get the new version.
        val_interval: Epochs from one validation to the next.
        model_dict_key: Key of the weights in `load_path`.
        load_strict: Refuse weights that lack a parameter or have another one.
        labels: Structure names, or name to value.
        disable_meta_tracking: Train on plain tensors.
    """

    TRAIN_METRIC_MEAN_DICE, VAL_METRIC_MEAN_DICE = "train_mean_dice", "val_mean_dice"
    TRAIN_METRIC_ACCURACY, VAL_METRIC_ACCURACY = "train_acc", "val_acc"

    def __init__(
        self,
        model_dir: str,
        description: str | None = None,
        config: Mapping[str, Any] | None = None,
        amp: bool = True,
        load_path: str | None = None,
        publish_path: str | None = None,
        val_interval: int = 1,
        model_dict_key: str = "model",
        load_strict: bool = False,
        labels: Any = None,
        disable_meta_tracking: bool = False,
        **_: Any,
    ) -> None:
        super().__init__(description)
        self._model_dir = model_dir
        self._amp = amp
        self._config = {
            "name": "train_01",
            "device": device_list(),
            "max_epochs": 50,
            "early_stop_patience": -1,
            "val_split": 0.2,
            "train_batch_size": 1,
            "val_batch_size": 1,
            "dataset": ["CacheDataset", "Dataset", "PersistentDataset"],
            **{key: value for key, value in (config or {}).items() if key != "pretrained"},
        }
        self._load_path, self._publish_path = load_path, publish_path
        self._val_interval = val_interval
        self._model_dict_key = model_dict_key
        self._load_strict = load_strict
        self._labels: Any = [] if labels is None else [labels] if isinstance(labels, str) else labels
        self._disable_meta_tracking = disable_meta_tracking
        self.run: Run | None = None

    def config(self) -> dict[str, Any]:
        """The options of a request, with their defaults."""
        return self._config

    def network(self, context: Context) -> Any:
        """Hook: the network."""
        raise NotImplementedError("implement network")

    def optimizer(self, context: Context) -> Any:
        """Hook: the optimizer of `context.network`."""
        raise NotImplementedError("implement optimizer")

    def loss_function(self, context: Context) -> Any:
        """Hook: the loss."""
        raise NotImplementedError("implement loss_function")

    def lr_scheduler_handler(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: a handler that changes the learning rate; None for none."""
        return None

    def train_pre_transforms(self, context: Context) -> Any:
        """Hook: transforms of a training pair."""
        raise NotImplementedError("implement train_pre_transforms")

    def train_post_transforms(self, context: Context) -> Any:
        """Hook: transforms of the output before metrics."""
        raise NotImplementedError("implement train_post_transforms")

    def val_pre_transforms(self, context: Context) -> Any:
        """Hook: transforms of a validation pair."""
        return self.train_pre_transforms(context)

    def val_post_transforms(self, context: Context) -> Any:
        """Hook: transforms of the output in validation."""
        return self.train_post_transforms(context)

    def train_inferer(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: runs the network in training."""
        return SimpleInferer()

    def val_inferer(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: runs the network in validation."""
        return SimpleInferer()

    def train_key_metric(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: metric of training by name."""
        return {self.TRAIN_METRIC_MEAN_DICE: mean_dice()}

    def val_key_metric(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: metric of validation by name; the first decides on promotion."""
        return {self.VAL_METRIC_MEAN_DICE: mean_dice()}

    def train_additional_metrics(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: further metrics."""
        return None

    def val_additional_metrics(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: further metrics."""
        return None

    def train_iteration_update(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: one iteration of training, such as simulated clicks."""
        return None

    def val_iteration_update(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: one iteration of validation."""
        return None

    def event_names(self, context: Context) -> Any:  # noqa: ARG002
        """Hook: events of the engines."""
        return None

    def train_handlers(self, context: Context) -> list[Any]:
        """Hook: handlers of the training engine."""
        handlers = [self.lr_scheduler_handler(context)]
        if context.evaluator is not None:
            handlers.append(ValidationHandler(self._val_interval, validator=context.evaluator, epoch_level=True))
        return [handler for handler in handlers if handler is not None]

    def val_handlers(self, context: Context) -> list[Any]:  # noqa: ARG002
        """Hook: handlers of the validation engine."""
        return [StatsHandler(output_transform=lambda _: None, iteration_log=False)]

    def train_data_loader(self, context: Context, num_workers: int = 0, shuffle: bool = True) -> Any:
        """Hook: batches of training."""
        data = self._dataset(context, context.train_datalist, self.train_pre_transforms(context))
        return DataLoader(data, batch_size=context.train_batch_size, shuffle=shuffle, num_workers=num_workers)

    def val_data_loader(self, context: Context, num_workers: int = 0) -> Any:
        """Hook: batches of validation."""
        data = self._dataset(context, context.val_datalist, self.val_pre_transforms(context))
        return DataLoader(data, batch_size=context.val_batch_size, num_workers=num_workers)

    def _dataset(self, context: Context, datalist: Any, transforms: Any) -> Any:
        chain = _composed(transforms)
        if context.dataset_type == "Dataset":
            return Dataset(datalist, chain)
        if context.dataset_type == "PersistentDataset":
            return PersistentDataset(datalist, chain, cache_dir=Path(context.cache_dir) / "volumes")
        return CacheDataset(datalist, chain, progress=False)

    def pre_process(self, request: dict[str, Any], datastore: Any) -> Any:  # noqa: ARG002
        """Hook: the labelled images, before they are divided."""
        return datastore.datalist()

    def partition_datalist(self, context: Context, shuffle: bool = False) -> tuple[Any, Any]:
        """Hook: training and validation pairs."""
        share = float(context.request.get("val_split", 0.0))
        count = min(round(share * len(context.datalist)) or int(share > 0), len(context.datalist) - 1)
        if count <= 0:
            return context.datalist, []
        kept = len(context.datalist) - count
        train, val = partition_dataset(context.datalist, ratios=[kept, count], shuffle=shuffle)
        return train, val

    def get_cache_dir(self, request: dict[str, Any]) -> str:
        """Folder of files that the run does not need later."""
        return str(Path(request["output_dir"]) / "cache")

    def cleanup(self, request: dict[str, Any]) -> None:
        """Hook: called when the training ends."""
        shutil.rmtree(self.get_cache_dir(request), ignore_errors=True)

    def finalize(self, context: Context) -> None:
        """Hook: called before the first epoch."""

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """Train; the run that `ported_train` put into `run` gets the best weights.

        Args:
            request: All options, with `output_dir` for files.
            datastore: With the labelled images as `datalist()`.
        """
        run = self.run
        if run is None:
            raise RuntimeError("a trainer is called by the server's training jobs")
        context = self._context(request, self.pre_process(request, datastore), run)
        tracked = get_track_meta()
        set_track_meta(tracked and not self._disable_meta_tracking)
        try:
            if context.evaluator is not None and run.baseline is not None:
                initial = copied(context.network)
                context.network.load_state_dict(read_weights(run.baseline), strict=self._load_strict)
                context.evaluator.run()
                run.measure_baseline(context.evaluator)
                context.network.load_state_dict(initial)
            run.watch(context)
            context.trainer.run()
        finally:
            set_track_meta(tracked)
            self.cleanup(request)
        return dict(context.trainer.state.metrics)

    def _context(self, request: dict[str, Any], datalist: Any, run: Run) -> Context:
        context = Context()
        context.request, context.datalist, context.device = request, datalist, run.host.device
        context.run_id, context.output_dir = request["run_id"], request["output_dir"]
        context.cache_dir = self.get_cache_dir(request)
        context.events_dir = str(Path(context.output_dir) / "tensorboard")
        context.max_epochs = int(request["max_epochs"])
        context.train_batch_size = int(request["train_batch_size"])
        context.val_batch_size = int(request["val_batch_size"])
        context.dataset_type = str(request["dataset"])
        context.train_datalist, context.val_datalist = self.partition_datalist(context)
        context.network = self.network(context).to(context.device)
        start = run.parent or (Path(self._load_path) if run.pretrained and self._load_path else None)
        if start is not None and start.exists():
            context.pretrained = True
            weights = read_weights(start, key=self._model_dict_key)
            context.network.load_state_dict(weights, strict=self._load_strict)
        context.optimizer = self.optimizer(context)
        context.evaluator = self._evaluator(context) if context.val_datalist else None
        context.trainer = self._trainer(context)
        self.finalize(context)
        patience = int(request.get("early_stop_patience", -1))
        if patience > 0 and context.evaluator is not None:
            EarlyStopHandler(
                patience, lambda engine: engine.state.metrics[engine.state.key_metric_name], trainer=context.trainer
            ).attach(context.evaluator)
        return context

    def _evaluator(self, context: Context) -> Any:
        return SupervisedEvaluator(
            device=context.device,
            val_data_loader=self.val_data_loader(context),
            network=context.network,
            inferer=self.val_inferer(context),
            postprocessing=_composed(self.val_post_transforms(context)),
            key_val_metric=self.val_key_metric(context),
            additional_metrics=self.val_additional_metrics(context),
            val_handlers=self.val_handlers(context) or [],
            iteration_update=self.val_iteration_update(context),
            event_names=self.event_names(context),
        )

    def _trainer(self, context: Context) -> Any:
        return SupervisedTrainer(
            device=context.device,
            max_epochs=context.max_epochs,
            train_data_loader=self.train_data_loader(context),
            network=context.network,
            optimizer=context.optimizer,
            loss_function=self.loss_function(context),
            inferer=self.train_inferer(context),
            amp=self._amp and context.device.type == "cuda",
            postprocessing=_composed(self.train_post_transforms(context)),
            key_train_metric=self.train_key_metric(context),
            additional_metrics=self.train_additional_metrics(context),
            train_handlers=self.train_handlers(context),
            iteration_update=self.train_iteration_update(context),
            event_names=self.event_names(context),
        )


def _composed(transforms: Any) -> Any:
    return Compose(list(transforms)) if isinstance(transforms, (list, tuple)) else transforms
