"""What a browser meets: the first page, the API's description; and clear words for what is not here."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html
from fastapi.responses import HTMLResponse

from rayapp.errors import NotFound
from rayapp.protocol import Path as Route

router = APIRouter()

_FIRST = """<!doctype html><html lang="en"><title>rayapp</title><h1>rayapp</h1>
<p>The server is running. Point 3D Slicer's MONAI Label module or the Python client at this address.</p>
<ul><li><a href="info/">what it offers</a></li><li><a href="docs">its HTTP interface</a></li></ul></html>"""
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="#2a6"/>'
    '<circle cx="6" cy="9" r="3" fill="#fff"/></svg>'
)


@router.get(Route.ROOT, response_class=HTMLResponse, include_in_schema=False)
async def first() -> str:
    """The first page."""
    return _FIRST


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The API's description as a page."""
    return get_redoc_html(openapi_url="openapi.json", title=request.app.title)


@router.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    """The icon."""
    return Response(_ICON, media_type="image/svg+xml")


@router.api_route(Route.OHIF, methods=["GET"], include_in_schema=False)
async def ohif(path: str) -> None:
    """OHIF is not served yet."""
    raise NotFound("OHIF is not installed on this server")


@router.api_route(Route.PROXY, methods=["GET", "POST"], include_in_schema=False)
async def proxy(path: str) -> None:
    """There is no archive behind a studies folder."""
    raise NotFound("the studies of this server are a folder; there is no DICOMweb archive behind it")


@router.post("/infer/wsi/{model}", include_in_schema=False)
@router.post("/infer/wsi_v2/{model}", include_in_schema=False)
async def whole_slide(model: str) -> None:
    """Pathology is out of scope."""
    raise NotFound("whole-slide images are not supported")
