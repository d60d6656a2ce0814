"""Parameters that the first loss does not reach, such as a teacher's, until a gradient comes to them."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_reg.apply.reached import _LOSSES, NotReached, averages_in


def test_what_the_first_loss_does_not_reach_is_known_until_a_gradient_comes() -> None:
    student, teacher, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    not_reached = NotReached()
    not_reached.ask(torch.tensor(1.0), [student, teacher, frozen])  # no graph: it is no answer
    assert not not_reached.ids
    not_reached.ask((student * 2).sum(), [student, teacher, frozen])
    assert set(not_reached.ids) == {id(teacher)}
    teacher.sum().backward()
    assert not not_reached.ids


def test_a_new_run_asks_anew() -> None:
    student, teacher = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    not_reached = NotReached()
    not_reached.ask(student.sum(), [student, teacher])
    not_reached.end()
    assert not not_reached.ids
    not_reached.ask(teacher.sum(), [student, teacher])
    assert set(not_reached.ids) == {id(student)}


def test_losses_in_turn_reach_what_the_first_does_not() -> None:
    """As those of a generator and a discriminator, whose weights count in its first loss."""
    generator, critic, target = (nn.Parameter(torch.ones(2)) for _ in range(3))
    not_reached = NotReached()
    not_reached.ask(generator.sum(), [generator, critic, target])
    assert set(not_reached.ids) == {id(critic), id(target)}
    not_reached.ask(critic.sum(), [generator, critic, target])
    assert set(not_reached.ids) == {id(target)}
    not_reached.ask(critic.sum(), [generator])  # the first loss alone leaves out
    assert set(not_reached.ids) == {id(target)}


def test_so_many_losses_are_asked_and_no_more() -> None:
    student, teacher = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    not_reached, asked = NotReached(), 0
    while not_reached.asks:
        asked += 1
        not_reached.ask(student.sum(), [student, teacher])
    assert asked == _LOSSES
    not_reached.ask(teacher.sum(), [student, teacher])
    assert set(not_reached.ids) == {id(teacher)}


def test_what_has_no_gradient_at_the_first_step_is_left_out_until_it_has_one() -> None:
    student, target, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    not_reached = NotReached()
    student.sum().backward()
    not_reached.look([student, target, frozen])
    assert set(not_reached.ids) == {id(target)}
    student.grad = None
    not_reached.look([student, target])  # each is looked at once
    assert set(not_reached.ids) == {id(target)}
    target.sum().backward()
    assert not not_reached.ids


class EMA(nn.Module):
    """A layer with efficient multi-scale attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)


def test_a_layer_that_is_called_like_an_average_counts() -> None:
    layer, average = nn.Sequential(nn.Linear(4, 4), EMA()), AveragedModel(nn.Linear(4, 4))
    assert not averages_in(layer)
    assert averages_in(nn.Sequential(layer, average)) == {id(parameter) for parameter in average.parameters()}
