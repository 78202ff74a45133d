"""Conditional requests on labels: the number of a revision as its entity tag (RFC 9110, section 13)."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Header

from rayapp.errors import BadRequest

_TAG = re.compile(r'"(\d{1,18})"')


def entity_tag(number: int) -> str:
    """The `ETag` of a label's revision."""
    return f'"{number}"'


def expected_revision(
    if_match: Annotated[
        str | None, Header(description='The `ETag` of the revision that the change was made from, such as `"3"`.')
    ] = None,
    if_none_match: Annotated[str | None, Header(description="`*`: only if there is no label yet.")] = None,
) -> int | None:
    """Number of the revision that a save or a removal expects to be the newest; 0 for none, None for any.

    Raises:
        BadRequest: a header is not of this form.
    """
    if if_match is None and if_none_match is None:
        return None
    if if_match is None and if_none_match == "*":
        return 0
    match = _TAG.fullmatch(if_match or "")
    if match is None or if_none_match is not None:
        raise BadRequest('send If-Match with the label\'s ETag, such as "3", or If-None-Match with *')
    return int(match[1])


Expected = Annotated[int | None, Depends(expected_revision)]
