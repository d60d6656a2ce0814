"""Parameters that the first loss does not reach, such as a teacher's, until a gradient comes to them."""

from __future__ import annotations

import torch
from torch import nn

from lightning_reg.apply.reached import NotReached


def test_what_the_first_loss_does_not_reach_is_known_until_a_gradient_comes() -> None:
    student, teacher, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    not_reached = NotReached()
    not_reached.ask(torch.tensor(1.0), [student, teacher, frozen])  # no graph: it is no answer
    assert not not_reached.asked and not not_reached.ids
    not_reached.ask((student * 2).sum(), [student, teacher, frozen])
    assert not_reached.asked and set(not_reached.ids) == {id(teacher)}
    not_reached.ask(teacher.sum(), [student, teacher])  # only the first loss counts
    assert set(not_reached.ids) == {id(teacher)}
    teacher.sum().backward()
    assert not not_reached.ids


def test_a_new_run_asks_anew() -> None:
    student, teacher = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    not_reached = NotReached()
    not_reached.ask(student.sum(), [student, teacher])
    not_reached.end()
    assert not not_reached.asked and not not_reached.ids
    not_reached.ask(teacher.sum(), [student, teacher])
    assert set(not_reached.ids) == {id(student)}
