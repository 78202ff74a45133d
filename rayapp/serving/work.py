"""A parsed call to a model, on which the steps of a replica work."""

from __future__ import annotations

from dataclasses import dataclass, field

from rayapp.inference.infer_task import InferTask, Prompts
from rayapp.serving.lane import Rank
from rayapp.serving.messages import InferCall
from rayapp.serving.supersession import Check
from rayapp.serving.volume_cache import OpenImage


@dataclass(frozen=True, kw_only=True)
class Work:
    """A parsed call.

    Attributes:
        call: the call as received; for a turn, `params` are the interaction's prompts.
        task: the model.
        image: the decoded image.
        prompts: all prompts in force.
        check: raises Superseded once the annotator's newer call has arrived.
        began: `time.perf_counter()` when the call arrived.
        hits: for each cache that was asked, whether it had what was needed.
    """

    call: InferCall
    task: InferTask
    image: OpenImage
    prompts: Prompts
    check: Check
    began: float
    hits: dict[str, bool] = field(default_factory=dict)

    @property
    def rank(self) -> Rank:
        """Rank of the call on the network's thread: a click if somebody waits for the answer to a prompt; such calls
        overtake those without one, such as segmentations.
        """
        prompted = self.call.turn is not None or not self.prompts.empty or self.prompts.roi is not None
        return Rank.CLICK if prompted else Rank.PROPOSAL
