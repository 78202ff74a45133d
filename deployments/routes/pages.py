"""Pages for browsers: the start page, the API's description, the icon. Open to all, and complete without a network."""

from __future__ import annotations

import asyncio
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

import rayapp.web
from deployments.access import Service
from deployments.page_policy import policy_of
from rayapp.config import Settings
from rayapp.downloads.ohif import is_prepared
from rayapp.protocol import Route

router = APIRouter(include_in_schema=False)

_START = Path(rayapp.web.__file__).parent / "start.html"
_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>rayapp</title>
<link rel="icon" href="favicon.ico" type="image/svg+xml">
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code{background:#eee;padding:.1em .3em}summary{cursor:pointer}details{margin:.3rem 0}td{padding:0 1rem 0 0}</style>"""
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="#2a6"/>'
    '<circle cx="6" cy="9" r="3" fill="#fff"/></svg>'
)


@router.get(Route.ROOT)
async def first(services: Service) -> HTMLResponse:
    """The start page: studies to open, the next image, what is served. It asks the server for these with the key of
    whoever reads it."""
    page = await asyncio.to_thread(_start_page, services.settings)
    policy = policy_of(page.encode())
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


def _start_page(settings: Settings) -> str:
    page = _START.read_text(encoding="utf-8")
    facts = {
        "VIEWER": is_prepared(settings.ohif),
        "KEYS": settings.auth != "none",
        "ARCHIVE": bool(settings.dicomweb.url),
    }
    for name, fact in facts.items():
        page = page.replace(f'"{name}"', '"yes"' if fact else '"no"', 1)
    return page


@router.get(Route.DOCS)
async def docs(request: Request) -> HTMLResponse:
    """The API's description (`/openapi.json`) as a page."""
    schema = request.app.openapi()
    routes = [
        _route(method.upper(), path, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    intro = f'<h1>rayapp {escape(schema["info"]["version"])}</h1><p>As <a href="openapi.json">OpenAPI</a>.</p>'
    return HTMLResponse(f"{_HEAD}{intro}{''.join(routes)}</html>")


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    fields = [(f"<code>{escape(p['name'])}</code>", f"in {p['in']}") for p in operation.get("parameters", ())]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        described = content["schema"].get("properties", {"": content["schema"]})
        fields += [
            (f"<code>{escape(name)}</code>", f"in the body ({kind}): {escape(field.get('description', ''))}")
            for name, field in described.items()
        ]
    answers = [(code, escape(answer["description"])) for code, answer in operation["responses"].items()]
    rows = "".join(f"<tr><td>{name}<td>{text}" for name, text in (*fields, *answers))
    text = escape(operation.get("description", operation["summary"]))
    return (
        f"<details><summary><code>{method} {escape(path)}</code></summary><p>{text}</p><table>{rows}</table></details>"
    )


@router.get(Route.ICON)
async def icon() -> Response:
    """The icon."""
    return Response(_ICON, media_type="image/svg+xml")
