"""An app as users of MONAI Label write them: one model, its trainer, a click model, a strategy and a score."""

import logging

from lib.bright import Bright, BrightTrainer, Clicks
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.sam2.infer import Sam2InferTask
from monailabel.scribbles.infer import HistogramBasedGraphCut

logger = logging.getLogger(__name__)


class Longest(Strategy):
    def __init__(self):
        super().__init__("Image with the longest name")

    def __call__(self, request, datastore):
        images = datastore.get_unlabeled_images()
        return {"id": max(images, key=len)} if images else None


class NameLength(ScoringMethod):
    def __init__(self):
        super().__init__("Length of the image's name")

    def __call__(self, request, datastore):
        for image in datastore.get_unlabeled_images():
            datastore.update_image_info(image, {"name_length": len(image)})


class MyApp(MONAILabelApp):
    def __init__(self, app_dir, studies, conf):
        self.models = {"bright": "bright.pt"}
        super().__init__(app_dir, studies, conf, name="labelled", description="a user's app", version="3")

    def init_infers(self):
        path = [f"{self.app_dir}/model/{file}" for file in self.models.values()]
        return {
            "bright": Bright(path=path, labels={"dim": 1, "lit": 2}),
            "clicks": Clicks(path=None, labels={"dim": 1, "lit": 2}, type=InferType.DEEPEDIT),
            "unwritten": Bright(path=f"{self.app_dir}/model/none.pt", labels=["a"]),
            "Histogram+GraphCut": HistogramBasedGraphCut(labels=["a"]),
            "sam_3d": Sam2InferTask(model_dir=self.app_dir, type=InferType.DEEPGROW, dimension=3),
        }

    def init_trainers(self):
        return {
            "bright": BrightTrainer(
                model_dir=f"{self.app_dir}/model",
                load_path=f"{self.app_dir}/model/bright.pt",
                publish_path=f"{self.app_dir}/model/bright.pt",
                labels={"dim": 1, "lit": 2},
                config={"max_epochs": 2},
            )
        }

    def init_strategies(self):
        return {"longest": Longest()}

    def init_scoring_methods(self):
        return {"name_length": NameLength()}

    def on_save_label(self, image_id, label_id):
        self.datastore().update_image_info(image_id, {"seen_by_app": label_id})
