"""Dependencies of the routes: the caller with the role that a route requires, and the gateway's services.

A route declares its role as `user: AsUser` (or AsAnnotator, AsAdmin). The key comes as `Authorization: Bearer <token>`;
it is checked here, inside the gateway and never only in front of it, before any of the body is read. Without
authentication every caller is the user `admin`, and the server listens on loopback only.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from deployments.description import Description
from deployments.interactions import OpenedInteractions
from deployments.metrics import Metrics
from deployments.series import SeriesStore
from deployments.services import Services
from deployments.uploads import Checks
from deployments.wrong_keys import WrongKeys
from rayapp.errors import NotAllowed, NotSignedIn
from rayapp.protocol import Role
from rayapp.users import User

EVERYONE = User(name="admin", role=Role.ADMIN)
_bearer = HTTPBearer(
    auto_error=False,
    description="A key of `rayapp users add`; needed with `--auth token`.",
)


def services_of(request: Request) -> Services:
    """Clients of the services behind the gateway."""
    services: Services = request.app.state.services
    return services


def description_of(request: Request) -> Description:
    """The app's description, cached."""
    description: Description = request.app.state.description
    return description


def checks_of(request: Request) -> Checks:
    """The bounded queue in which uploads are checked."""
    checks: Checks = request.app.state.checks
    return checks


def opened_of(request: Request) -> OpenedInteractions:
    """Interactions as they were opened, cached."""
    opened: OpenedInteractions = request.app.state.interactions
    return opened


def series_store_of(request: Request) -> SeriesStore:
    """The studies folder's images as DICOM series."""
    store: SeriesStore = request.app.state.series
    return store


def metrics_of(request: Request) -> Metrics:
    """The gateway's metrics."""
    metrics: Metrics = request.app.state.metrics
    return metrics


Measures = Annotated[Metrics, Depends(metrics_of)]
Service = Annotated[Services, Depends(services_of)]
Described = Annotated[Description, Depends(description_of)]
Checking = Annotated[Checks, Depends(checks_of)]
Opened = Annotated[OpenedInteractions, Depends(opened_of)]
AllSeries = Annotated[SeriesStore, Depends(series_store_of)]


class Needs:
    """Dependency that returns the caller. Refuses callers without the rights of `role`."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(
        self, request: Request, services: Service, key: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> User:
        """Authenticate. Raises NotSignedIn (401) and NotAllowed (403)."""
        user = EVERYONE if services.settings.auth == "none" else await _owner(request, services, key)
        request.state.user = user  # for the audit
        if not user.role.reaches(self.role):
            raise not_allowed(user, self.role)
        return user


async def _owner(request: Request, services: Services, key: HTTPAuthorizationCredentials | None) -> User:
    user = await services.users.authenticate(key.credentials) if key else None
    if user is None:
        if key is not None:
            await wrong_key(request)
        raise NotSignedIn(
            "a valid key is required: send it as `Authorization: Bearer <token>` (`rayapp users add` creates one, and "
            "`rayapp users rotate` a new one when it has expired)"
        )
    return user


async def wrong_key(request: Request) -> None:
    """Wait before a wrong key is refused; see `WrongKeys`."""
    seen: WrongKeys = request.app.state.wrong_keys
    await seen.refused(request.client.host if request.client else "")


def not_allowed(user: User, role: Role) -> NotAllowed:
    """The error for a user whose role is too low; names the one that is required."""
    return NotAllowed(f'Role "{role}" is required; {user.name} has "{user.role}"')


AsUser = Annotated[User, Depends(Needs(Role.USER))]
AsAnnotator = Annotated[User, Depends(Needs(Role.ANNOTATOR))]
AsAdmin = Annotated[User, Depends(Needs(Role.ADMIN))]
