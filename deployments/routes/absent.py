"""Routes of MONAI Label that this server does not support: a clear message instead of a bare 404."""

from __future__ import annotations

from fastapi import APIRouter

from deployments.access import AsUser
from rayapp.errors import NotFound
from rayapp.protocol import Route

router = APIRouter(include_in_schema=False)


@router.post(Route.INFER_SLIDE)
@router.post(Route.INFER_SLIDE_V2)
async def whole_slide(model: str, user: AsUser) -> None:
    """Refuse whole-slide inference."""
    raise NotFound("whole-slide images are not supported: this server is for 3D radiology")
