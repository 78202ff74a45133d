"""A run's length: in epochs, in steps or in minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.training.checkpoint import State
from rayapp.training.length import Length
from rayapp.training.local_host import LocalHost
from rayapp.training.options import Options


def length(**given):
    return Length(Options().over(given), LocalHost(Path("unused"), device=torch.device("cpu")))


def test_without_more_a_run_ends_with_its_last_epoch():
    run = length(max_epochs=4)
    assert [run.done(State(epoch=epoch, iteration=99, seconds=1e6)) for epoch in (0, 1, 4)] == [0, 0.25, 1]
    assert (run.steps(7), run.timed, run.in_epochs) == (28, False, True)


def test_steps_end_a_run_wherever_its_epoch_is():
    run = length(max_steps=40, max_epochs=2)
    assert [run.done(State(epoch=9, iteration=iteration)) for iteration in (10, 40, 41)] == [0.25, 1, 1]
    assert (run.steps(7), run.timed, run.in_epochs) == (40, False, False)


def test_minutes_end_a_run_however_fast_it_is():
    run = length(minutes=0.5)
    assert [run.done(State(iteration=9, seconds=seconds)) for seconds in (0, 7.5, 30, 31)] == [0, 0.25, 1, 1]
    assert run.timed


def test_what_is_reached_first_ends_it():
    run = length(minutes=1, max_steps=10)
    assert run.done(State(iteration=5, seconds=6)) == 0.5
    assert run.done(State(iteration=1, seconds=45)) == 0.75


def test_such_a_run_is_validated_about_twenty_times():
    run, state = length(max_steps=1000), State()
    times = 0
    for iteration in range(3, 1001, 3):
        state.iteration = min(iteration, 1000)
        if run.validation_due(state, done := run.done(state)):
            state.validated, times = done, times + 1
    assert 18 <= times <= 21


def test_the_number_of_epochs_is_estimated_from_those_so_far():
    run = length(max_steps=100)
    state = State(epoch=3, iteration=25)
    assert run.epochs(state, run.done(state)) == 12
    assert run.epochs(State(), 0.0) == 1


@pytest.mark.parametrize(("device", "steps"), [("cpu", 2_000), ("cuda", 20_000), ("mps", 2_000)])
def test_a_run_of_no_given_length_takes_the_steps_that_suit_its_device(device, steps):
    assert Options(max_epochs=0).bounded(device).max_steps == steps
    for given in ({"max_epochs": 3}, {"minutes": 2.0}, {"max_steps": 7}):
        kept = Options(max_epochs=0).over(given)
        assert kept.bounded(device) == kept


@pytest.mark.parametrize(
    "given", [{"max_epochs": -1}, {"minutes": -1}, {"minutes": 1e9}, {"max_steps": -3}, {"minutes": "nan"}]
)
def test_lengths_that_cannot_be_are_refused(given):
    with pytest.raises(BadRequest, match="max_epochs and max_steps must be at least 0"):
        length(**given)


@pytest.mark.parametrize("given", [{"max_steps": 400}, {"max_epochs": 40}, {"minutes": 20}])
@pytest.mark.parametrize("validation", [0.1, 60.0])
def test_after_a_minute_the_time_left_is_right_within_a_fifth(given, validation):
    """Steps of a second, ten to an epoch, and validations that take no time or most of it."""
    run, state, told = length(**{"max_epochs": 0, **given}), State(iterations=400), {}
    while (done := run.done(state)) < 1:
        state.iteration, state.seconds = state.iteration + 1, state.seconds + 1
        if given.get("max_epochs", 0) == 0:
            state.iterations = max(state.iteration, round(state.iteration / max(run.done(state), 1e-9)))
        told[state.seconds] = run.seconds_left(state, run.done(state))
        if state.iteration % 10 == 0:
            state.epoch += 1
            if run.validation_due(state, done := run.done(state)):
                state.seconds, state.validating = state.seconds + validation, state.validating + validation
                state.validated, state.validations = done, state.validations + 1
    end = state.seconds + 2 * validation  # the result and the version in production are evaluated
    late = {at: left for at, left in told.items() if at >= max(60, 1.1 * validation)}
    assert len(late) > 100
    for at, left in list(late.items())[:50]:
        assert left == pytest.approx(end - at, rel=0.2)
