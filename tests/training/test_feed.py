"""An epoch visits each case once, however many workers share it and wherever it is taken up again; a batch is as large
as its largest example."""

import dataclasses

import pytest
import torch

from rayapp.inference.network.normalisation import PADDING
from rayapp.training.cases import Case, Cases
from rayapp.training.feed import Feed, batch_of


def feed(count, *, rank=0, world_size=1, batch_size=2, seed=0, visits=1, read=None, capacity=1 << 20):
    """Cases that are their own number; examples add what the generator drew. `read` receives each number read."""

    def case(n):
        if read is not None:
            read.append(n)
        return Case(image=torch.tensor([float(n)]), labels=torch.zeros(1))

    cases = Cases(range(count), case, capacity=capacity, held=batch_size)
    return Feed(
        cases=cases,
        examples=lambda case, rng: [(case.image + float(rng.random()) / 2, case.labels)],
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        visits=visits,
    )


def seen(feed, epoch=0, consumed=0):
    return [value for batch in feed.epoch(epoch, consumed=consumed) for value in batch.images.flatten().tolist()]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [12, 13])
def test_the_workers_see_every_case_and_as_many_batches_each(count, world_size):
    shares = [seen(feed(count, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    everything = [int(value) for share in shares for value in share]
    assert set(everything) == set(range(count))
    assert len(everything) - count < 2 * world_size


def test_an_epoch_taken_up_again_goes_on_with_the_same_examples():
    whole = seen(feed(13), epoch=3)
    assert seen(feed(13), epoch=3, consumed=4)[:9] == whole[4:13]
    one, other = (seen(feed(13, rank=rank, world_size=2), epoch=3, consumed=4) for rank in range(2))
    assert {*one, *other} >= set(whole[4:13])


def test_cases_that_fill_up_a_batch_are_other_examples():
    values = seen(feed(3, batch_size=8))
    assert len(values) == len(set(values)) == 8
    assert {int(value) for value in values} == {0, 1, 2}


@pytest.mark.parametrize("world_size", [1, 2])
def test_several_visits_to_a_case_read_it_once_show_different_examples_and_never_fill_a_batch_alone(world_size):
    read, values = [], []
    for rank in range(world_size):
        own = feed(12, visits=3, rank=rank, world_size=world_size, read=read, capacity=0)
        assert own.batches() * world_size == 18
        for batch in own.epoch(0):
            first, second = batch.images.flatten().tolist()
            assert int(first) != int(second)
            values += [first, second]
    assert sorted(read) == list(range(12))
    assert sorted(int(value) for value in values) == sorted([*range(12)] * 3)
    assert len(set(values)) == 36


def test_an_epoch_of_several_visits_taken_up_again_goes_on_with_the_same_examples():
    whole = seen(feed(7, visits=3), epoch=2)
    assert len(whole) == 22
    assert seen(feed(7, visits=3), epoch=2, consumed=8) == whole[8:]
    assert {int(value) for value in whole} == set(range(7))


def test_epochs_and_seeds_differ_and_repeat():
    assert seen(feed(12), epoch=1) != seen(feed(12), epoch=2)
    assert seen(feed(12, seed=1)) != seen(feed(12, seed=2))
    assert seen(feed(12), epoch=1) == seen(feed(12), epoch=1)


def test_examples_are_made_by_one_thread_and_the_network_keeps_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        used = []
        noting = dataclasses.replace(
            feed(4), examples=lambda case, _: used.append(torch.get_num_threads()) or [(case.image, case.labels)]
        )
        for _ in noting.epoch(0):
            assert torch.get_num_threads() == 2
        assert used == [1, 1, 1, 1]
    finally:
        torch.set_num_threads(before)


def test_what_a_case_raises_reaches_the_loop():
    broken = feed(6)
    broken.cases._read = lambda number: number / 0
    with pytest.raises(ZeroDivisionError):
        seen(broken)


@pytest.mark.parametrize("shapes", [[(5, 8, 3), (6, 2, 7)], [(4, 9), (7, 3)], [(2, 3, 4)]])
def test_examples_are_padded_at_their_ends_to_the_largest(shapes):
    made = [(torch.rand(2, *shape), torch.ones(shape, dtype=torch.uint8)) for shape in shapes]
    batch = batch_of(made)
    assert batch.labels.shape == (len(shapes), *(max(sizes) for sizes in zip(*shapes, strict=True)))
    for (image, labels), wide, mask in zip(made, batch.images, batch.labels, strict=True):
        inside = tuple(slice(n) for n in labels.shape)
        torch.testing.assert_close(wide[:, *inside], image, rtol=0, atol=0)
        assert mask[inside].all()
        assert mask.sum() == labels.numel()
        assert (wide == PADDING).sum() == 2 * (mask == 0).sum()
