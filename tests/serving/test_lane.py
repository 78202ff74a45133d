"""Clicks pass long work on the network's thread, at its windows, and never each other."""

from __future__ import annotations

import threading

import pytest

from rayapp.inference.network.cancellation import checkpoint, interruptible
from rayapp.serving.lane import Lane, Rank


@pytest.fixture
def lane():
    lane = Lane("network", lambda: None)
    yield lane
    lane.close()


def test_clicks_run_before_other_work_that_came_earlier(lane):
    go, order = threading.Event(), []
    blocked = lane.submit(go.wait, rank=Rank.PROPOSAL)
    work = [lane.submit(lambda: order.append("segmentation"), rank=Rank.PROPOSAL)]
    work += [lane.submit(lambda n=n: order.append(n), rank=Rank.CLICK) for n in range(3)]
    go.set()
    for future in (blocked, *work):
        future.result(20)
    assert order == [0, 1, 2, "segmentation"]


def test_a_click_passes_a_segmentation_at_its_next_window_on_the_same_thread(lane):
    window, go, order, threads = threading.Event(), threading.Event(), [], set()

    def segmentation():
        with interruptible(lane.let_pass):
            for number in range(3):
                checkpoint()
                threads.add(threading.get_ident())
                order.append(f"window {number}")
                if number == 0:
                    window.set()
                    go.wait(20)
        return "mask"

    def click():
        with interruptible(lambda: None):
            checkpoint()
            threads.add(threading.get_ident())
            order.append("click")

    long = lane.submit(segmentation, rank=Rank.PROPOSAL)
    window.wait(20)
    passing = lane.submit(click, rank=Rank.CLICK)
    go.set()
    assert long.result(20) == "mask"
    passing.result(20)
    assert order == ["window 0", "click", "window 1", "window 2"]
    assert len(threads) == 1


def test_a_click_that_fails_leaves_the_segmentation_alone(lane):
    window, go = threading.Event(), threading.Event()

    def segmentation():
        with interruptible(lane.let_pass):
            window.set()
            go.wait(20)
            checkpoint()
            return "mask"

    def click():
        raise ValueError("no such structure")

    long = lane.submit(segmentation, rank=Rank.PROPOSAL)
    window.wait(20)
    passing = lane.submit(click, rank=Rank.CLICK)
    go.set()
    assert long.result(20) == "mask"
    with pytest.raises(ValueError, match="no such structure"):
        passing.result(20)


def test_the_check_of_the_segmentation_holds_again_after_a_click(lane):
    def superseded():
        raise RuntimeError("superseded")

    def work():
        with interruptible(lambda: None):
            with pytest.raises(RuntimeError), interruptible(superseded):
                pass
            checkpoint()
        checkpoint()

    lane.submit(work, rank=Rank.PROPOSAL).result(20)


def test_what_waits_is_cancelled_when_the_lane_closes(lane):
    started, go = threading.Event(), threading.Event()
    running = lane.submit(lambda: (started.set(), go.wait(20)), rank=Rank.CLICK)
    waiting = [lane.submit(lambda: None, rank=rank) for rank in Rank]
    started.wait(20)
    lane.close()
    go.set()
    running.result(20)
    assert all(future.cancelled() for future in [*waiting, lane.submit(lambda: None, rank=Rank.CLICK)])


def test_proposals_on_the_screen_run_before_what_is_done_ahead(lane):
    go, order = threading.Event(), []
    blocked = lane.submit(go.wait, rank=Rank.CLICK)
    work = [lane.submit(lambda rank=rank: order.append(rank), rank=rank) for rank in reversed(Rank)]
    go.set()
    for future in (blocked, *work):
        future.result(20)
    assert order == [Rank.CLICK, Rank.PROPOSAL, Rank.AHEAD]


@pytest.mark.parametrize("rank", Rank)
def test_people_take_turns_however_many_calls_one_of_them_sends(lane, rank):
    go, order = threading.Event(), []
    blocked = lane.submit(go.wait, rank=Rank.CLICK)
    calls = ["ann"] * 4 + ["ben"] * 2 + ["cleo"]
    work = [lane.submit(lambda whose=whose: order.append(whose), rank=rank, whose=whose) for whose in calls]
    go.set()
    for future in (blocked, *work):
        future.result(20)
    assert order == ["ann", "ben", "cleo", "ann", "ben", "ann", "ann"]
