"""The HTTP API's paths and values."""

from __future__ import annotations

import pytest

from rayapp.errors import BadRequest
from rayapp.protocol import Route, parse_flag


@pytest.mark.parametrize("value", [True, "true", "True", " yes ", "on", "1", ["true"], [True, False], 1])
def test_a_flag_may_come_as_text_a_number_or_the_first_of_its_choices(value: object) -> None:
    assert parse_flag(value, "guard")


@pytest.mark.parametrize("value", [None, False, "false", "No", "off", "0", "", [], 0, ["false"]])
def test_a_flag_that_is_off_may_come_in_as_many_ways(value: object) -> None:
    assert not parse_flag(value, "guard")


@pytest.mark.parametrize("value", ["maybe", 2, [1], {"on": True}, float("nan")])
def test_what_is_no_flag_is_refused_by_its_name(value: object) -> None:
    with pytest.raises(BadRequest, match="guard must be true or false, not "):
        parse_flag(value, "guard")


def test_names_in_a_path_cannot_leave_their_place() -> None:
    assert Route.JOB_FILE.filled(job_id="../x", name="a b?c") == "/jobs/..%2Fx/files/a%20b%3Fc"
