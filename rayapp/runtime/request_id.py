"""The id of the request that is being worked on, from the gateway to the replicas, for their logs."""

from __future__ import annotations

from contextvars import ContextVar

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""As in the response's `X-Request-ID`; "" outside of any request."""
