"""`/auth/`: signing in with a key. These routes exist only when authentication is on."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request

from deployments.access import Service, signed_in
from rayapp.errors import NotSignedIn
from rayapp.protocol import Path as Route

router = APIRouter(tags=["auth"])


@router.get("/auth", include_in_schema=False)
@router.get(Route.AUTH)
async def enabled() -> dict[str, Any]:
    """How to sign in."""
    return {"enabled": True, "client_id": "rayapp", "realm": "rayapp"}


@router.post(Route.AUTH_TOKEN)
async def token(
    services: Service, username: Annotated[str, Form()], password: Annotated[str, Form()]
) -> dict[str, str]:
    """Sign in with one's name and one's key as the password: for clients that ask for both."""
    user = await services.users.authenticate(password)
    if user is None or user.name != username:
        raise NotSignedIn("wrong name or key")
    return {"access_token": password, "token_type": "bearer"}


@router.get(Route.AUTH_VALID)
async def valid(request: Request, services: Service) -> dict[str, Any]:
    """Who one is; 401 without a valid key."""
    user = await signed_in(request, services)
    return {"username": user.name, "email": "", "name": user.name, "roles": [user.role]}
