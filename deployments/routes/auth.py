"""`/auth/`: sign in with a key. These routes exist only with authentication."""

from __future__ import annotations

from fastapi import APIRouter, Request

from deployments.access import AsUser, Service, wrong_key
from deployments.forms import describe_form, read_form
from deployments.problems import problems
from rayapp.errors import NotSignedIn
from rayapp.protocol import Role, Route
from rayapp.responses import SignIn, Token, UserInfo

router = APIRouter(tags=["auth"], responses=problems(400, 413))


@router.get(Route.AUTH)
async def enabled(services: Service) -> SignIn:
    """The sign-in method."""
    return SignIn(enabled=True, client_id=services.settings.oidc.client_id, realm="rayapp")


@router.post(
    Route.AUTH_TOKEN,
    openapi_extra=describe_form(
        texts={"username": "The user's name.", "password": "The user's key, or the password at the provider."},
        needed=["username", "password"],
    ),
)
async def token(request: Request, services: Service) -> Token:
    """Sign in with the user's name, and as the password the key, or with `--auth oidc` that of the provider."""
    async with read_form(request, texts=("username", "password")) as form:
        name, password = form.texts.get("username", ""), form.texts.get("password", "")
    try:
        key = await services.users.sign_in(name, password)
    except NotSignedIn:
        await wrong_key(request)
        raise
    return Token(access_token=key, token_type="bearer")


@router.get(Route.AUTH_VALID)
async def valid(user: AsUser) -> UserInfo:
    """The user that the key belongs to; 401 without a valid key."""
    roles = [role for role in Role if user.role.reaches(role)]
    return UserInfo(username=user.name, email="", name=user.name, roles=roles)
