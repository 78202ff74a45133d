"""A model has its time for computing alone, however long it waits or lets clicks pass."""

from __future__ import annotations

import asyncio

import pytest

from rayapp.serving.answer_clock import AnswerClock


class Time:
    """The event loop's time, which passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: self._now)

    async def passes(self, seconds: float) -> None:
        self._now += seconds
        for _ in range(5):  # whatever is due then
            await asyncio.sleep(0)


async def test_waiting_before_and_between_is_not_counted_and_computing_is(monkeypatch: pytest.MonkeyPatch):
    time = Time(monkeypatch)
    clock = AnswerClock(60)
    answer = asyncio.ensure_future(clock.within(asyncio.get_running_loop().create_future()))
    await time.passes(700)  # in the queue
    clock.run()
    await time.passes(0)
    await time.passes(50)
    clock.pause()
    await time.passes(0)
    await time.passes(800)  # eight clicks of 100 s
    clock.run()
    await time.passes(0)
    await time.passes(9)
    assert not answer.done()
    await time.passes(2)
    with pytest.raises(TimeoutError):
        await answer
    assert clock.expired


async def test_an_answer_in_time_and_the_models_own_time_out_are_no_expiry():
    clock = AnswerClock(60)
    assert await clock.within(asyncio.sleep(0, "mask")) == "mask"
    clock.run()  # too late to matter
    await asyncio.sleep(0)
    assert not clock.expired

    async def own() -> None:
        raise TimeoutError("the server of the model")

    clock = AnswerClock(60)
    with pytest.raises(TimeoutError, match="the server of the model"):
        await clock.within(own())
    assert not clock.expired


async def test_what_runs_in_between_is_not_counted_even_if_it_fails(monkeypatch: pytest.MonkeyPatch):
    time = Time(monkeypatch)
    clock = AnswerClock(60)
    answer = asyncio.ensure_future(clock.within(asyncio.get_running_loop().create_future()))
    await time.passes(0)
    clock.run()

    def broken() -> None:
        raise ValueError("a click")

    with pytest.raises(ValueError, match="a click"):
        clock.paused(broken)
    await time.passes(0)
    await time.passes(59)
    assert not answer.done()
    await time.passes(2)
    with pytest.raises(TimeoutError):
        await answer
