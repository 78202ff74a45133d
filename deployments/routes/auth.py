"""`/auth/`: signing in with a key. These routes exist only when authentication is on."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel

from deployments.access import AsUser, Service
from deployments.forms import describe_form, read_form
from deployments.problems import problems
from rayapp.errors import NotSignedIn
from rayapp.protocol import Path as Route
from rayapp.protocol import Role

router = APIRouter(tags=["auth"], responses=problems(400, 413))


class Enabled(BaseModel):
    """How to sign in."""

    enabled: bool = True
    client_id: str = "rayapp"
    realm: str = "rayapp"


class Token(BaseModel):
    """What to send as `Authorization: <token_type> <access_token>`."""

    access_token: str
    token_type: str = "bearer"


class Person(BaseModel):
    """The user that a key belongs to, with every role it holds."""

    username: str
    email: str = ""
    name: str
    roles: list[Role]


@router.get(Route.AUTH)
async def enabled() -> Enabled:
    """Whether, and how, to sign in."""
    return Enabled()


@router.post(
    Route.AUTH_TOKEN,
    openapi_extra=describe_form(
        texts={"username": "The user's name.", "password": "The user's key."}, needed=["username", "password"]
    ),
)
async def token(request: Request, services: Service) -> Token:
    """Sign in with one's name and one's key as the password: for clients that ask for both."""
    async with read_form(request, texts=("username", "password")) as form:
        key = form.texts.get("password", "")
        user = await services.users.authenticate(key)
        if user is None or user.name != form.texts.get("username"):
            raise NotSignedIn("wrong name or key: the password is the key that `rayapp users add` printed")
    return Token(access_token=key)


@router.get(Route.AUTH_VALID)
async def valid(user: AsUser) -> Person:
    """Who one is; 401 without a valid key."""
    return Person(username=user.name, name=user.name, roles=[role for role in Role if user.role.reaches(role)])
