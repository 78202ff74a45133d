"""`POST /infer/{model}`: automatic segmentation and clicks, in the forms of Slicer, OHIF and our own client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Response, UploadFile

from deployments.access import AsUser, Service
from deployments.services import Services
from deployments.uploads import author_of, check_image, checked, extension, json_object, staged
from rayapp.errors import BadRequest
from rayapp.imaging.reader import EXTENSIONS
from rayapp.inference.messages import InferCall, InferReply
from rayapp.models.store import sha256_of
from rayapp.protocol import MASK_MEDIA_TYPE, ORIGINAL, Output, checked_name
from rayapp.protocol import Path as Route
from rayapp.users import User

router = APIRouter(tags=["inference"])

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Two parts: `params` (JSON) and `image` (the mask); with `output` one of them alone",
        "content": {"multipart/form-data": {}, "application/octet-stream": {}, MASK_MEDIA_TYPE: {}},
    }
}


@router.post(Route.INFER, response_class=Response, responses=_ANSWERS)
async def infer(
    model: str,
    services: Service,
    user: AsUser,
    image: Annotated[str, Query()] = "",
    session_id: Annotated[str, Query()] = "",
    output: Annotated[Output, Query()] = Output.ALL,
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
) -> Response:
    """Run a model on an image of the store, of a session, or on the uploaded `file`."""
    request = json_object(params, "params")
    model = checked_name(model, "model")
    if output is Output.DICOM_SEG:
        raise BadRequest("output=dicom_seg needs a DICOMweb archive; this server's studies are a folder")
    ext = _result_ext(request)
    async with contextlib.AsyncExitStack() as stack:
        mask = await stack.enter_async_context(staged(services, label, extension(label.filename))) if label else None
        key, path = await _image_of(services, stack, image, session_id, file)
        call = InferCall(
            model=model,
            key=key,
            params=request,
            output=output,
            ext=ext,
            path=path,
            mask=mask,
            user=user.name,
            client_id=author_of(user, request).client_id,
        )
        reply = await services.inference.infer(call)
    if request.get("save_label") in (True, "true") and path is None and output in (Output.ALL, Output.IMAGE):
        await _save(services, user, call, reply)
    return _answer(output, reply)


def _result_ext(request: dict[str, Any]) -> str:
    ext = request.get("result_extension") or ".nrrd"
    if ext not in EXTENSIONS:
        raise BadRequest(f"result_extension must be one of {', '.join(EXTENSIONS)}, not {ext!r}")
    return str(ext)


async def _image_of(
    services: Services, stack: contextlib.AsyncExitStack, image: str, session_id: str, file: UploadFile | None
) -> tuple[str, Path | None]:
    """The call's key, and the file to read when it is not the store's."""
    if session_id:
        return f"session/{session_id}", await services.sessions.image(session_id)
    if file is not None:
        path = await stack.enter_async_context(staged(services, file, extension(file.filename)))
        await checked(check_image, path, services.settings.max_volume)
        return f"upload/{await asyncio.to_thread(sha256_of, path)}", path
    if image:
        return checked_name(image, "image"), None
    raise BadRequest("say what to segment: `image` or `session_id` in the query, or an uploaded `file`")


async def _save(services: Services, user: User, call: InferCall, reply: InferReply) -> None:
    """Keep the prediction as a label, as batch inference and `save_label` ask."""
    if reply.body is None:
        return
    tag = checked_name(str(call.params.get("label_tag") or ORIGINAL), "label_tag")
    path: Path = await services.datastore.stage(reply.ext)
    await asyncio.to_thread(path.write_bytes, reply.body)
    await services.datastore.save_label(
        call.key,
        tag,
        path,
        reply.ext,
        info={"model": call.model, "params": dict(reply.params)},
        author=author_of(user, dict(call.params)),
        model_version=str(reply.params.get("model_version", "")),
    )


def _answer(output: Output, reply: InferReply) -> Response:
    if output is Output.JSON or reply.body is None:
        return Response(json.dumps(reply.params), media_type="application/json")
    name = f"{secrets.token_hex(8)}{reply.ext}"
    if output is Output.BOX:
        headers = {"X-Rayapp-Params": json.dumps(reply.params)}
        return Response(reply.body, media_type=MASK_MEDIA_TYPE, headers=headers)
    if output is Output.IMAGE:
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(reply.body, media_type="application/octet-stream", headers=headers)
    boundary = secrets.token_hex(16)
    body = _multipart(boundary, json.dumps(reply.params).encode(), reply.body, name)
    # The Python client parses the raw socket: one body of known length, `params` first and without a file name.
    return Response(body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})


def _multipart(boundary: str, params: bytes, mask: bytes, filename: str) -> bytes:
    mark = boundary.encode()
    return b"".join(
        (
            b"--" + mark + b'\r\nContent-Disposition: form-data; name="params"\r\n',
            b"Content-Type: application/json\r\n\r\n" + params + b"\r\n",
            b"--" + mark + b'\r\nContent-Disposition: form-data; name="image"; filename="' + filename.encode(),
            b'"\r\nContent-Type: application/octet-stream\r\n\r\n' + mask + b"\r\n",
            b"--" + mark + b"--\r\n",
        )
    )
