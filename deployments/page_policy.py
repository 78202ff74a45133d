"""The Content-Security-Policy of pages with inline scripts."""

from __future__ import annotations

import base64
import functools
import hashlib
import re

_INLINE = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)


@functools.lru_cache(maxsize=8)
def policy_of(page: bytes, *, evaluates: bool = False) -> str:
    """The policy of a page for which everything comes from this server; of inline scripts, only its own run.

    Args:
        page: The page, as it is sent.
        evaluates: Its scripts compile others, with `new Function` or as WebAssembly.
    """
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _INLINE.findall(page))
    scripts = ("'self'", *(["'unsafe-eval'"] if evaluates else []), *(f"'sha256-{digest}'" for digest in digests))
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src {' '.join(scripts)}",
            "worker-src 'self' blob:",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'self'",
        )
    )
