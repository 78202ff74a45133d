"""`POST /infer/{model}`: automatic segmentation and prompts, as 3D Slicer, OHIF and our client send them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from deployments.access import AllSeries, AsUser, Checking, Described, Service, not_allowed
from deployments.forms import Form, describe_form, read_form
from deployments.problems import problems
from deployments.replies import OCTETS, disposition, inference_parts
from deployments.series import SeriesStore
from deployments.services import Services
from deployments.streams import unless_gone
from deployments.uploads import Checks, author_of, check_image, to_store
from rayapp.errors import BadRequest
from rayapp.imaging.writer import WRITABLE
from rayapp.models.store import sha256_of
from rayapp.protocol import MASK_MEDIA_TYPE, ORIGINAL, PARAMS_HEADER, Output, Role, Route, checked_name, parse_flag
from rayapp.serving.messages import InferCall, InferReply, SaveAs
from rayapp.users import User

router = APIRouter(tags=["inference"], responses=problems(400, 404, 409, 413, 422, 503))

# Not taken from the params: query and path name the image and the model, and are checked there.
_OURS = frozenset({"image", "model", "session", "session_id", "path"})
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Two parts, `params` (JSON) and `image` (the mask), or with `output` one of them alone. "
        "Models that do not make masks answer JSON alone.",
        "content": {
            "multipart/form-data": {},
            "application/json": {"schema": {"type": "object"}},
            OCTETS: {},
            MASK_MEDIA_TYPE: {},
            "application/dicom": {},
        },
    }
}
_FORM = describe_form(
    texts={"params": "JSON object: clicks by label name, as voxel indices [i, j, k], and options."},
    files={"file": "An image, instead of a stored one.", "label": "A label map: scribbles, or a mask to start from."},
)


@router.post(Route.INFER, response_class=Response, responses=_ANSWERS, openapi_extra=_FORM)
async def infer(
    model: str,
    request: Request,
    services: Service,
    described: Described,
    checks: Checking,
    series: AllSeries,
    user: AsUser,
    image: Annotated[str, Query()] = "",
    session_id: Annotated[str, Query()] = "",
    output: Annotated[Output, Query()] = Output.ALL,
) -> Response:
    """Run a model on the image of a session, else on the uploaded `file`, else on a stored image.

    With `save_label` among the params the prediction is also saved, under the tag `label_tag` (default `original`).
    """
    model = checked_name(await described.spelled("models", model), "model")
    async with read_form(
        request, texts=("params",), files=("file", "label"), stage=to_store(services, raw=True)
    ) as form:
        params = form.json("params")
        key, path = await _image_of(services, checks, series, form, image, session_id)
        mask = form.file("label")
        call = InferCall(
            model=model,
            key=key,
            params={name: value for name, value in params.items() if name not in _OURS},
            output=output,
            ext=".nii" if output is Output.DICOM_SEG else _result_ext(params),
            path=path,
            mask=mask.path if mask else None,
            user=user.name,
            client_id=author_of(user, params).client_id,
            save=_save_as(params, user, output) if path is None else None,
        )
        reply = await unless_gone(request, services.inference.infer(call))
    return _answer(output, reply)


async def _image_of(
    services: Services, checks: Checks, series: SeriesStore, form: Form, image: str, session_id: str
) -> tuple[str, Path | None]:
    """`key` and `path` of the `InferCall`. Raises BadRequest if the request names no image."""
    if session_id:
        return f"session/{session_id}", await services.sessions.image(session_id)
    upload = form.file("file")
    if upload is not None:
        await checks.run(check_image, upload.path, services.settings.max_volume)
        return f"upload/{await asyncio.to_thread(sha256_of, upload.path)}", upload.path
    if image:
        return await series.source(checked_name(image, "image"))
    raise BadRequest("no image given: send `image` or `session_id` in the query, or upload a `file`")


def _result_ext(params: Mapping[str, Any]) -> str | None:
    """The format that the client asked for; None for that of the image's own file."""
    ext = params.get("result_extension")
    if ext and ext not in WRITABLE:
        raise BadRequest(f"result_extension must be one of {', '.join(WRITABLE)}, not {str(ext)[:60]!r}")
    return str(ext) if ext else None


def _save_as(params: Mapping[str, Any], user: User, output: Output) -> SaveAs | None:
    """The tag and author under which to save the prediction; None if the request does not ask to save it."""
    if not parse_flag(params.get("save_label"), "save_label"):
        return None
    if not user.role.reaches(Role.ANNOTATOR):
        raise not_allowed(user, Role.ANNOTATOR)
    if output is Output.BOX:
        raise BadRequest("save_label cannot be combined with output=box: use all, image or json")
    return SaveAs(
        tag=checked_name(str(params.get("label_tag") or ORIGINAL), "label_tag"), author=author_of(user, params)
    )


def _answer(output: Output, reply: InferReply) -> Response:
    if output is Output.JSON or (reply.body is None and output is Output.ALL):
        return Response(json.dumps(dict(reply.params)), media_type="application/json")
    if reply.body is None:
        raise BadRequest("this model does not make masks: ask for output=json")
    if output is Output.BOX:
        headers = {PARAMS_HEADER: json.dumps(dict(reply.params))}
        return Response(reply.body, media_type=MASK_MEDIA_TYPE, headers=headers)
    name = f"{secrets.token_hex(8)}{reply.ext}"
    if output in (Output.IMAGE, Output.DICOM_SEG):
        media_type = "application/dicom" if output is Output.DICOM_SEG else OCTETS
        headers = {"Content-Disposition": disposition("attachment", name)}
        return Response(reply.body, media_type=media_type, headers=headers)
    return inference_parts(reply.params, reply.body, name)
