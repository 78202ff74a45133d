"""Encoding of a prediction for the reply: packed bits, a file, or a DICOM segmentation; and the reply's params."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayapp.errors import BadRequest
from rayapp.imaging import dicom_seg, mask_codec
from rayapp.imaging.label_names import entries_of, with_names
from rayapp.imaging.writer import WRITABLE
from rayapp.inference.infer_task import Prediction
from rayapp.inference.label_file import as_segmentation, encode_prediction
from rayapp.protocol import Output
from rayapp.serving.click_log import Mask
from rayapp.serving.work import Work


def encode_reply(work: Work, prediction: Prediction, onto: Mask | None) -> tuple[bytes | None, str, float]:
    """Encode a prediction.

    Returns:
        The reply's body, its extension, and the seconds that encoding took.
    """
    began = time.perf_counter()
    body, ext = None, _extension(work)
    if work.call.output is Output.BOX:
        body = mask_codec.encode(prediction.labels, onto)
    elif work.call.output in (Output.ALL, Output.IMAGE):
        body, ext = encode_file(work, prediction)
    return body, ext, time.perf_counter() - began


def encode_file(work: Work, prediction: Prediction) -> tuple[bytes, str]:
    """The mask as a file, with its extension; for a model that answers with JSON, its JSON."""
    if prediction.document is not None:
        return prediction.document, ".json"
    wide = work.call.params.get("result_dtype") == "uint16"
    affine, ext = work.image.volume.affine, _extension(work)
    return encode_prediction(prediction, work.task.info, affine, ext, wide=wide), ext


def encode_dicom_seg(
    work: Work, prediction: Prediction, params: Mapping[str, Any], instances: Path, *, kind: dicom_seg.Kind
) -> bytes:
    """The mask as a DICOM segmentation.

    Args:
        work: the call.
        prediction: the model's prediction.
        params: the reply's params, from which the segmentation states how it was made.
        instances: folder of the image's DICOM files.
        kind: type of segmentation.

    Raises:
        BadRequest: the model answers with JSON and makes no masks.
    """
    if prediction.document is not None:
        raise BadRequest("this model does not make masks: ask for output=json")
    call = work.call
    info = {"label_info": call.params.get("label_info"), "params": dict(params)}
    mask = as_segmentation(prediction, work.task.info, work.image.volume.affine)
    provenance = dicom_seg.Provenance(
        model=call.model,
        version=str(params.get("model_version") or "1"),
        corrected=call.mask is not None or any(_is_points(value) for value in call.params.values()),
        description=call.model,
        entries=entries_of(info),
    )
    label = with_names(replace(mask, names={}), info)
    return dicom_seg.encode(label, instances, kind=kind, provenance=provenance)


STAGES = ("queue", "pre", "infer", "invert", "post", "write")
"""Stages of an answer: waiting for the network, preparing, the network, restoring the grid, the prompts, encoding."""


def reply_params(work: Work, prediction: Prediction, write_s: float) -> dict[str, Any]:
    """The reply's params, as MONAI Label's clients read them.

    Args:
        work: the call.
        prediction: the model's prediction.
        write_s: seconds that encoding took.
    """
    latencies = {**prediction.seconds, "write": write_s}
    stages = {name: round(latencies.get(name, 0.0), 4) for name in STAGES}
    return {
        "label_names": dict(work.task.info.labels),
        "latencies": {**stages, "total": round(time.perf_counter() - work.began, 4), "transform": {}},
        "centroids": {},
        "model_version": work.task.version,
        **prediction.params,
    }


def _extension(work: Work) -> str:
    ext = work.call.ext or work.image.file.ext
    return ext if ext in WRITABLE else ".nrrd"


def _is_points(value: Any) -> bool:
    """True for a parameter that is a list of clicks."""
    return isinstance(value, list) and bool(value) and all(isinstance(point, list) for point in value)
