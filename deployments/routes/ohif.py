"""`/ohif/`: the OHIF viewer with our extension and mode, once `rayapp ohif install` has installed it.

Open to all, since a browser that opens a page sends no key; the files hold no patient data. Files with a digest in
their name are cached for ever, the others are revalidated.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import rayapp.web
from deployments.access import Service
from deployments.page_policy import policy_of
from deployments.services import Services
from rayapp.downloads.ohif import is_prepared
from rayapp.errors import NotFound
from rayapp.protocol import PARAMS_HEADER, Route, StreamEvent

router = APIRouter(include_in_schema=False)

OURS = "rayapp/"
"""Folder of our extension and mode under `/ohif/`."""
_DIGEST = re.compile(r"(^|\.)[0-9a-f]{16,20}\.(js|wasm|woff2)$")
_FOREVER, _ASK = "public, max-age=31536000, immutable", "no-cache"


@router.get(Route.OHIF_ROOT.rstrip("/"))
@router.get(Route.OHIF_ROOT)
async def start(request: Request, services: Service) -> Response:
    """The study list of the viewer."""
    if request.scope["path"] != Route.OHIF_ROOT:
        return RedirectResponse(Route.OHIF_ROOT)
    return await ohif("", request, services)


@router.get(Route.OHIF)
async def ohif(path: str, request: Request, services: Service) -> Response:
    """A file of the viewer; for any other path the viewer's page, which does its own routing."""
    folder = services.settings.ohif
    if not (folder / "index.html").is_file():
        raise NotFound("the OHIF viewer is not installed: run `rayapp ohif install` and restart the server")
    if path == "app-config.js":
        return Response(_config(services), media_type="text/javascript", headers={"Cache-Control": _ASK})
    if path.startswith(OURS):
        folder, path = Path(rayapp.web.__file__).parent / "ohif", path.removeprefix(OURS)
    files = StaticFiles(directory=folder)
    try:
        answer = await files.get_response(path or "index.html", request.scope)
    except HTTPException as error:
        if error.status_code != 404 or Path(path).suffix:
            raise NotFound("the viewer has no such file") from error
        answer = await files.get_response("index.html", request.scope)
    answer.headers["Cache-Control"] = _FOREVER if _DIGEST.search(path) else _ASK
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        page = folder / (path if path.endswith(".html") else "index.html")
        answer.headers["Content-Security-Policy"] = await asyncio.to_thread(_policy, page)
    return answer


def _policy(page: Path) -> str:
    """The Content-Security-Policy of a page of the viewer, which compiles array loops and decoders."""
    return policy_of(page.read_bytes(), evaluates=True)


def _config(services: Services) -> str:
    """`app-config.js`: the studies' source, our extension and mode (only for the build that they are written for), and
    the server's routes for our extension."""
    ours = is_prepared(services.settings.ohif)
    source = {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "rayapp",
        "configuration": _source(archive=bool(services.settings.dicomweb.url)),
    }
    config = {
        "routerBasename": Route.OHIF_ROOT,
        "extensions": [f"{Route.OHIF_ROOT}{OURS}extension.mjs"] if ours else [],
        "modes": [f"{Route.OHIF_ROOT}{OURS}mode.mjs"] if ours else [],
        "showStudyList": True,
        "showLoadingIndicator": True,
        "showCPUFallbackMessage": False,
        "strictZSpacingForVolumeViewport": True,
        "maxNumberOfWebWorkers": 3,
        "maxNumRequests": {"interaction": 20, "thumbnail": 5, "prefetch": 10},
        "defaultDataSourceName": "rayapp",
        "dataSources": [source],
        "rayapp": {
            "server": "/",
            "keys": services.settings.auth != "none",
            "archive": bool(services.settings.dicomweb.url),
            "routes": {route.name.lower(): route for route in Route},
            "paramsHeader": PARAMS_HEADER,
            "streamEvents": {event.name.lower(): event for event in StreamEvent},
        },
    }
    return f"window.config = {json.dumps(config, indent=1)};\n"


def _source(*, archive: bool) -> dict[str, Any]:
    """OHIF's data source: the archive through our proxy, or the studies folder."""
    return {
        "friendlyName": "rayapp",
        "name": "rayapp",
        "qidoRoot": Route.PROXY_QIDO if archive else Route.DICOMWEB,
        "wadoRoot": Route.PROXY_WADO if archive else Route.DICOMWEB,
        "wadoUriRoot": Route.PROXY_WADO if archive else Route.DICOMWEB,
        "qidoSupportsIncludeField": True,
        "supportsReject": False,
        "supportsStow": False,
        "imageRendering": "wadors",
        "thumbnailRendering": "wadors",
        "enableStudyLazyLoad": True,
        "supportsFuzzyMatching": False,
        "supportsWildcard": True,
        "dicomUploadEnabled": False,
        "omitQuotationForMultipartRequest": True,
        "bulkDataURI": {"enabled": True},
    }
