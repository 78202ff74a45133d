"""The pool: every image once, whatever becomes of the workers."""

import contextlib
import threading
from collections import Counter

import pytest

from rayapp.errors import BadRequest, Busy, ModelBroken
from rayapp.jobs import pool
from rayapp.jobs.pool import Pool, Stopped, WorkerLost

IMAGES = [f"im_{n}" for n in range(20)]


class Workers:
    """Some workers that do, or suffer, what is written for an image."""

    def __init__(self, count=3, **faults):
        self.faults = {image: list(some) for image, some in faults.items()}
        self.asked, self.lock = [], threading.Lock()
        self.all = [self.work] * count

    def work(self, image, stop):
        with self.lock:
            self.asked.append(image)
            fault = self.faults[image].pop(0) if self.faults.get(image) else None
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            fault()
        return image.upper()


def run(workers, images=IMAGES, stop=None):
    done = []
    Pool(images, stop=stop or threading.Event(), done=done.append).run(workers.all)
    return done


def test_every_image_is_done_once_and_told():
    workers = Workers()
    done = run(workers)
    assert sorted(workers.asked) == sorted(IMAGES)
    assert {one.image_id: one.answer for one in done} == {image: image.upper() for image in IMAGES}
    assert run(workers, images=[]) == []


def test_an_image_whose_worker_was_lost_is_done_once_more():
    workers = Workers(im_3=[WorkerLost()], im_7=[WorkerLost()])
    done = run(workers)
    assert Counter(workers.asked) == {**dict.fromkeys(IMAGES, 1), "im_3": 2, "im_7": 2}
    assert sorted(one.image_id for one in done) == sorted(IMAGES)
    assert all(one.failure is None for one in done)


def test_an_image_that_ends_two_workers_fails_and_the_rest_is_done():
    workers = Workers(im_3=[WorkerLost()] * 9)
    done = run(workers)
    assert Counter(workers.asked)["im_3"] == 2
    failed = {one.image_id: one.failure for one in done if one.failure}
    assert failed == {"im_3": "2 worker processes died while working on it"}
    assert len(done) == len(IMAGES)


def test_what_is_wrong_with_an_image_is_its_failure_and_no_text_of_a_fault_is_told():
    workers = Workers(im_1=[BadRequest("two channels are missing")], im_2=[ZeroDivisionError("/srv/Doe^John")])
    failed = {one.image_id: one.failure for one in run(workers) if one.failure}
    assert failed == {"im_1": "two channels are missing", "im_2": "failed with ZeroDivisionError"}


def test_a_part_of_the_server_that_is_away_for_a_while_costs_no_image(monkeypatch):
    monkeypatch.setattr(pool, "BUSY_S", 0.01)
    done = run(Workers(im_5=[Busy("away"), Busy("away")]))
    assert all(one.failure is None for one in done)


def test_what_no_image_can_be_done_with_ends_the_pass():
    workers = Workers(count=1, im_2=[ModelBroken("weights are missing")])
    with pytest.raises(ModelBroken):
        run(workers)
    assert workers.asked == IMAGES[:3]


def test_a_pass_that_is_stopped_leaves_what_was_begun():
    stop = threading.Event()

    def stopped():
        stop.set()
        raise Stopped

    workers = Workers(count=1, im_4=[stopped])
    done = run(workers, stop=stop)
    assert [one.image_id for one in done] == IMAGES[:4]
    assert workers.asked == IMAGES[:5]


def test_outcomes_are_told_one_at_a_time():
    within, most, two_at_once = [], [], threading.Barrier(2)

    def told(_):
        within.append(1)
        most.append(len(within))
        with contextlib.suppress(threading.BrokenBarrierError):
            two_at_once.wait(0.2)  # time for another worker to come here meanwhile
        within.pop()

    Pool(IMAGES, stop=threading.Event(), done=told).run(Workers(count=5).all)
    assert most == [1] * len(IMAGES)
