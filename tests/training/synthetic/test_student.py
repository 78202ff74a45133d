"""The student learns from cases, all of it or the judge alone."""

import itertools

import pytest
import torch

from rayapp.training.synthetic.examples import cases
from rayapp.training.synthetic.student import ENOUGH, Score, Student

NETWORK = {"dimensions": 3, "widths": (8, 8, 16, 16), "tail": 8}


@pytest.mark.parametrize("judge_alone", [False, True])
def test_a_step_teaches_the_whole_network_or_the_judge_alone(judge_alone):
    student = Student(NETWORK, [32], seed=1, judge_alone=judge_alone)
    for case in itertools.islice(cases(2, [32], bodies=0), ENOUGH):
        student.admit(case)
    assert not student.short
    before = {name: weights.detach().clone() for name, weights in student.network.named_parameters()}
    student.step(1e-3, score := Score())
    changed = {name for name, weights in student.network.named_parameters() if not torch.equal(weights, before[name])}
    assert any(name.startswith("judge.") for name in changed)
    assert all(name.startswith("judge.") for name in changed) == judge_alone
    assert len(score.losses) == 1
    assert student.samples > 0
