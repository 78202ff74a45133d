"""`POST /infer/{model}`: automatic segmentation and clicks, in the forms of Slicer, OHIF and our own client."""

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
from rayapp.imaging.dicom_seg import Provenance, encode
from rayapp.imaging.label_names import entries_of, with_names
from rayapp.imaging.reader import EXTENSIONS, read_segmentation
from rayapp.models.store import sha256_of
from rayapp.protocol import MASK_MEDIA_TYPE, ORIGINAL, PARAMS_HEADER, Output, Role, Route, checked_name, parse_flag
from rayapp.serving.messages import InferCall, InferReply
from rayapp.users import User

router = APIRouter(tags=["inference"], responses=problems(400, 404, 409, 413, 422, 503))

# Never taken from a client: which image and which model is said by the query and the path, and checked there.
_OURS = frozenset({"image", "model", "session", "session_id", "path"})
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Two parts, `params` (JSON) and `image` (the mask); with `output` one of them alone. "
        "JSON alone from a model that makes no mask.",
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
    texts={"params": "JSON object: clicks by label name as voxel indices [i, j, k], and options."},
    files={"file": "An image, in place of a stored one.", "label": "A label map to start from (scribbles)."},
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
    """Run a model on a session's image, else on the uploaded `file`, else on a stored image."""
    model = checked_name(await described.spelled("models", model), "model")
    async with read_form(
        request, texts=("params",), files=("file", "label"), stage=to_store(services, raw=True)
    ) as form:
        params = form.json("params")
        key, path = await _image_of(services, checks, series, form, image, session_id)
        mask = form.file("label")
        tag = _tag_to_save(params, user, output) if path is None else None
        call = InferCall(
            model=model,
            key=key,
            params={name: value for name, value in params.items() if name not in _OURS},
            output=Output.ALL if output is Output.DICOM_SEG or (tag and output is Output.JSON) else output,
            ext=".nii" if output is Output.DICOM_SEG else await _result_ext(services, params, key, path),
            path=path,
            mask=mask.path if mask else None,
            user=user.name,
            client_id=author_of(user, params).client_id,
        )
        instances = await _instances(services, key, path) if output is Output.DICOM_SEG else None
        reply = await unless_gone(request, services.inference.infer(call))
    if tag is not None and reply.body is not None:
        await _save(services, user, call, reply, reply.body, tag)
    if instances is not None:
        return await _dicom_seg(services, checks, call, reply, instances)
    return _answer(output, reply)


async def _instances(services: Services, key: str, path: Path | None) -> Path:
    """The DICOM files of what is segmented."""
    if path is None:
        return await services.datastore.instances(key)
    if not await asyncio.to_thread(path.is_dir):
        raise BadRequest("output=dicom_seg is for DICOM series, and this image is none")
    return path


async def _dicom_seg(
    services: Services, checks: Checks, call: InferCall, reply: InferReply, instances: Path
) -> Response:
    if reply.body is None:
        raise BadRequest("this model makes no mask: ask for output=json")
    staged = await services.datastore.stage(reply.ext)
    info = {"label_info": call.params.get("label_info"), "params": dict(reply.params)}
    kind = services.settings.dicomweb.segmentation

    def encoded(mask: bytes) -> bytes:
        staged.write_bytes(mask)
        label = with_names(read_segmentation(staged, max_bytes=services.settings.max_volume), info)
        provenance = Provenance(
            model=call.model,
            version=str(reply.params.get("model_version") or "1"),
            corrected=call.mask is not None or any(_is_points(value) for value in call.params.values()),
            description=call.model,
            entries=entries_of(info),
        )
        return encode(label, instances, kind=kind, provenance=provenance)

    try:
        body = await checks.run(encoded, reply.body)
    finally:
        await asyncio.to_thread(staged.unlink, missing_ok=True)
    name = f"{secrets.token_hex(8)}.dcm"
    headers = {"Content-Disposition": disposition("attachment", name)}
    return Response(body, media_type="application/dicom", headers=headers)


def _is_points(value: Any) -> bool:
    """Whether a parameter is a list of clicks."""
    return isinstance(value, list) and bool(value) and all(isinstance(point, list) for point in value)


async def _image_of(
    services: Services, checks: Checks, series: SeriesStore, form: Form, image: str, session_id: str
) -> tuple[str, Path | None]:
    """The call's key, and the file to read when it is not the store's."""
    if session_id:
        return f"session/{session_id}", await services.sessions.image(session_id)
    upload = form.file("file")
    if upload is not None:
        await checks.run(check_image, upload.path, services.settings.max_volume)
        return f"upload/{await asyncio.to_thread(sha256_of, upload.path)}", upload.path
    if image:
        return await series.source(checked_name(image, "image"))
    raise BadRequest("say what to segment: `image` or `session_id` in the query, or an uploaded `file`")


async def _result_ext(services: Services, params: Mapping[str, Any], key: str, path: Path | None) -> str:
    """What the client asked for, else the image's own, as far as masks are written so."""
    asked = params.get("result_extension")
    if not asked:
        own = path.name if path else (await services.datastore.image(key)).ext
        return next((ext for ext in EXTENSIONS if own.endswith(ext)), ".nrrd")
    if asked not in EXTENSIONS:
        raise BadRequest(f"result_extension must be one of {', '.join(EXTENSIONS)}, not {str(asked)[:60]!r}")
    return str(asked)


def _tag_to_save(params: Mapping[str, Any], user: User, output: Output) -> str | None:
    """The tag to keep the prediction under, if the request asks for that. Needs the role that saving labels needs."""
    if not parse_flag(params.get("save_label"), "save_label"):
        return None
    if not user.role.reaches(Role.ANNOTATOR):
        raise not_allowed(user, Role.ANNOTATOR)
    if output is Output.BOX:
        raise BadRequest("save_label does not go with output=box: ask for all, image or json")
    return checked_name(str(params.get("label_tag") or ORIGINAL), "label_tag")


async def _save(services: Services, user: User, call: InferCall, reply: InferReply, body: bytes, tag: str) -> None:
    path = await services.datastore.stage(reply.ext)
    try:
        await asyncio.to_thread(path.write_bytes, body)
        version = reply.params.get("model_version")
        await services.datastore.save_label(
            call.key,
            tag,
            path,
            reply.ext,
            info={"model": call.model, "params": dict(reply.params)},
            author=author_of(user, call.params),
            model_version=None if version is None else str(version),
        )
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


def _answer(output: Output, reply: InferReply) -> Response:
    if output is Output.JSON or (reply.body is None and output is Output.ALL):
        return Response(json.dumps(dict(reply.params)), media_type="application/json")
    if reply.body is None:
        raise BadRequest("this model makes no mask: ask for output=json")
    if output is Output.BOX:
        headers = {PARAMS_HEADER: json.dumps(dict(reply.params))}
        return Response(reply.body, media_type=MASK_MEDIA_TYPE, headers=headers)
    name = f"{secrets.token_hex(8)}{reply.ext}"
    if output is Output.IMAGE:
        return Response(reply.body, media_type=OCTETS, headers={"Content-Disposition": disposition("attachment", name)})
    return inference_parts(reply.params, reply.body, name)
