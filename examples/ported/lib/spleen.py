"""The porting guide's model; transforms and inferer are unchanged from MONAI Label."""

from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

from rayapp.inference.methods.basic_infer import BasicInferTask


class Spleen(BasicInferTask):
    """The spleen model's transforms and inferer."""

    def pre_transforms(self, data=None):
        """From the file to the network's input."""
        return [
            LoadImaged(keys="image"),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS"),
            Spacingd(keys="image", pixdim=(1.5, 1.5, 2.0)),
            ScaleIntensityRanged(keys="image", a_min=-57, a_max=164, b_min=0.0, b_max=1.0, clip=True),
        ]

    def inferer(self, data=None):
        """Sliding-window inference over the whole image."""
        return SlidingWindowInferer(roi_size=(96, 96, 96), overlap=0.25)

    def post_transforms(self, data=None):
        """From the network's output to label values."""
        return [Activationsd(keys="pred", softmax=True), AsDiscreted(keys="pred", argmax=True)]
