"""What the clients know and this server does not serve: clear words instead of a bare 404."""

from __future__ import annotations

from fastapi import APIRouter

from deployments.access import AsUser
from rayapp.errors import NotFound
from rayapp.protocol import Route

router = APIRouter(include_in_schema=False)


@router.post(Route.INFER_SLIDE)
@router.post(Route.INFER_SLIDE_V2)
async def whole_slide(model: str, user: AsUser) -> None:
    """Pathology is out of scope."""
    raise NotFound("whole-slide images are not supported by this server: it serves 3D radiology")
