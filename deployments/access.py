"""Who may call what: one role per route, declared beside the route as `user: Needs[Role.…]`.

The key travels as `Authorization: Bearer <token>` and is checked here, inside the gateway replica, never only in front
of it. Without authentication everyone is the user `admin` (and only loopback is served).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security.utils import get_authorization_scheme_param

from deployments.services import Services
from rayapp.errors import NotAllowed, NotSignedIn
from rayapp.protocol import Role
from rayapp.users import User

EVERYONE = User(name="admin", role=Role.ADMIN)


def services_of(request: Request) -> Services:
    """What this gateway talks to."""
    services: Services = request.app.state.services
    return services


Service = Annotated[Services, Depends(services_of)]


class Needs:
    """A dependency that gives the caller, if its role reaches `role`."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request, services: Service) -> User:
        """Raises NotSignedIn (401) and NotAllowed (403)."""
        user = await signed_in(request, services)
        if not user.role.reaches(self.role):
            raise NotAllowed(f'Role "{self.role}" is required; {user.name} has "{user.role}"')
        return user


async def signed_in(request: Request, services: Services) -> User:
    """The caller. Raises NotSignedIn when authentication is on and no valid key came."""
    if services.settings.auth == "none":
        return EVERYONE
    scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
    user = await services.users.authenticate(token) if scheme.lower() == "bearer" and token else None
    if user is None:
        raise NotSignedIn("send a valid key as `Authorization: Bearer <token>` (`rayapp users add` makes one)")
    found: User = user
    return found


AsUser = Annotated[User, Depends(Needs(Role.USER))]
AsAnnotator = Annotated[User, Depends(Needs(Role.ANNOTATOR))]
AsAdmin = Annotated[User, Depends(Needs(Role.ADMIN))]
