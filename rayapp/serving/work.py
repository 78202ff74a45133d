"""A call to a model once it is parsed: what one click's way through a replica works on."""

from __future__ import annotations

from dataclasses import dataclass

from rayapp.inference.infer_task import InferTask, Prompts
from rayapp.serving.messages import InferCall
from rayapp.serving.supersession import Check
from rayapp.serving.volume_cache import OpenImage


@dataclass(frozen=True, kw_only=True)
class Work:
    """A parsed call.

    Attributes:
        call: as it came, with the interaction's prompts as `params` if it is a turn.
        task: the model.
        image: decoded.
        prompts: all that are in force.
        check: raises Superseded once the annotator's newer call is here.
        began: `time.perf_counter()` when the call came.
    """

    call: InferCall
    task: InferTask
    image: OpenImage
    prompts: Prompts
    check: Check
    began: float

    @property
    def click(self) -> bool:
        """True if somebody waits for the answer to a prompt: it passes work without any, such as a segmentation."""
        return self.call.turn is not None or not self.prompts.empty or self.prompts.roi is not None
