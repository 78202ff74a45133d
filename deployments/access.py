"""Who may call what: one role per route, declared beside the route as `user: AsUser` (or AsAnnotator, AsAdmin).

The key travels as `Authorization: Bearer <token>` and is checked here, inside the gateway replica, never only in front
of it, and before any of the body is read. Without authentication everyone is the user `admin` (and only loopback is
served).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from deployments.description import Description
from deployments.interactions import OpenedInteractions
from deployments.series import SeriesStore
from deployments.services import Services
from deployments.uploads import Checks
from rayapp.errors import NotAllowed, NotSignedIn
from rayapp.protocol import Role
from rayapp.users import User

EVERYONE = User(name="admin", role=Role.ADMIN)
_bearer = HTTPBearer(auto_error=False, description="A key of `rayapp users add`, where the server asks for one.")


def services_of(request: Request) -> Services:
    """What this gateway talks to."""
    services: Services = request.app.state.services
    return services


def description_of(request: Request) -> Description:
    """What the app says of itself."""
    description: Description = request.app.state.description
    return description


def checks_of(request: Request) -> Checks:
    """Where uploads are checked."""
    checks: Checks = request.app.state.checks
    return checks


def opened_of(request: Request) -> OpenedInteractions:
    """The interactions as they were opened."""
    opened: OpenedInteractions = request.app.state.interactions
    return opened


def series_store_of(request: Request) -> SeriesStore:
    """The images as DICOM series."""
    store: SeriesStore = request.app.state.series
    return store


Service = Annotated[Services, Depends(services_of)]
Described = Annotated[Description, Depends(description_of)]
Checking = Annotated[Checks, Depends(checks_of)]
Opened = Annotated[OpenedInteractions, Depends(opened_of)]
AllSeries = Annotated[SeriesStore, Depends(series_store_of)]


class Needs:
    """A dependency that gives the caller, if its role reaches `role`."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(
        self, services: Service, key: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> User:
        """Raises NotSignedIn (401) and NotAllowed (403)."""
        user = EVERYONE if services.settings.auth == "none" else await _owner(services, key)
        if not user.role.reaches(self.role):
            raise not_allowed(user, self.role)
        return user


async def _owner(services: Services, key: HTTPAuthorizationCredentials | None) -> User:
    user = await services.users.authenticate(key.credentials) if key else None
    if user is None:
        raise NotSignedIn("send a valid key as `Authorization: Bearer <token>` (`rayapp users add` makes one)")
    return user


def not_allowed(user: User, role: Role) -> NotAllowed:
    """The refusal, which names the role that is needed."""
    return NotAllowed(f'Role "{role}" is required; {user.name} has "{user.role}"')


AsUser = Annotated[User, Depends(Needs(Role.USER))]
AsAnnotator = Annotated[User, Depends(Needs(Role.ANNOTATOR))]
AsAdmin = Annotated[User, Depends(Needs(Role.ADMIN))]
