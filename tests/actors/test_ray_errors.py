"""Errors of ours inside Ray's."""

from __future__ import annotations

from actors.ray_errors import error_in


def test_a_message_of_rays_is_cut_down_to_the_error_of_ours_that_ends_it():
    message = "Traceback …\nrayapp.errors.Conflict: first\nmore\nrayapp.errors.AppBroken: main.py, line 3: no\n\n"
    found = error_in(message)
    assert (type(found).__name__, found.detail) == ("AppBroken", "main.py, line 3: no")
    assert error_in("Traceback …\nValueError: rayapp.errors.AppBroken: quoted") is None
