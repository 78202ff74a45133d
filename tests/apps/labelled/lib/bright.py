import torch
from monai.losses import DiceCELoss
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    EnsureChannelFirstd,
    EnsureTyped,
    Flipd,
    LoadImaged,
    Orientationd,
    Spacingd,
)
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.tasks.train.basic_train import BasicTrainTask
from monailabel.transform.post import Restored


class Steps(torch.nn.Module):
    """Class 1 above 1, class 2 above 3."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 3, 1)
        with torch.no_grad():
            self.conv.weight[:] = torch.tensor([0.0, 2.0, 4.0]).reshape(3, 1, 1, 1, 1)
            self.conv.bias[:] = torch.tensor([0.0, -2.0, -8.0])

    def forward(self, x):
        return self.conv(x)


class Bright(BasicInferTask):
    def __init__(self, path, network=None, type=InferType.SEGMENTATION, labels=None, dimension=3, **kwargs):
        super().__init__(
            path=path,
            network=network or Steps(),
            type=type,
            labels=labels,
            dimension=dimension,
            description="brighter than a value",
            load_strict=False,
            config={"above": 0.0, "turned": False},
            **kwargs,
        )

    def pre_transforms(self, data=None):
        t = [
            LoadImaged(keys="image", reader="ITKReader"),
            EnsureTyped(keys="image", device=data.get("device") if data else None),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="LPS"),
            Spacingd(keys="image", pixdim=(1.0, 1.0, 1.0), mode="nearest"),
            lambda d: {**d, "image": d["image"] - float(data["above"])},
        ]
        if data["turned"]:
            t.append(Flipd(keys="image", spatial_axis=1))
        return t

    def post_transforms(self, data=None):
        return [
            Activationsd(keys="pred", softmax=True),
            AsDiscreted(keys="pred", argmax=True),
            Restored(keys="pred", ref_image="image"),
            lambda d: {**d, "result": {"above": data["above"], "image_path": data["image_path"]}},
        ]


class Clicks(Bright):
    """A cube around each click."""

    def pre_transforms(self, data=None):
        return [LoadImaged(keys="image"), EnsureChannelFirstd(keys="image")]

    def run_inferer(self, data, convert_to_batch=True, device="cuda"):
        pred = torch.zeros_like(data["image"])
        for value, name in enumerate(self.labels, 1):
            for i, j, k in data[name]:
                pred[0, i, j, k] = value
        data["pred"] = pred
        return data

    def post_transforms(self, data=None):
        return [Restored(keys="pred", ref_image="image")]


class BrightTrainer(BasicTrainTask):
    def network(self, context):
        return Steps()

    def optimizer(self, context):
        return torch.optim.Adam(context.network.parameters(), lr=0.01)

    def loss_function(self, context):
        return DiceCELoss(to_onehot_y=True, softmax=True)

    def train_pre_transforms(self, context):
        return [
            LoadImaged(keys=("image", "label"), reader="ITKReader"),
            EnsureChannelFirstd(keys=("image", "label")),
            EnsureTyped(keys=("image", "label"), device=context.device),
        ]

    def train_post_transforms(self, context):
        return [
            Activationsd(keys="pred", softmax=True),
            AsDiscreted(keys=("pred", "label"), argmax=(True, False), to_onehot=3),
        ]
