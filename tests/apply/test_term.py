"""What a step asks of a module: nothing, where nothing has changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from lightning_reg import L1
from lightning_reg.apply import Term, add_gradient_, term


def a_net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return net


def acted_on(bound: Term, optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for _, parameters in bound.stepped(optimizer) for parameter in parameters]


def test_a_module_is_walked_once_for_any_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[nn.Module] = []
    walk = term.named_parameters
    monkeypatch.setattr(term, "named_parameters", lambda module: walks.append(module) or walk(module))
    net = a_net()
    bound, optimizer = Term(L1(0.1), net), SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        add_gradient_(bound, optimizer, 0.1)
    assert len(walks) == 1


def test_a_tensor_exchanged_in_a_group_of_equal_length_is_noticed() -> None:
    net = a_net()
    bound, optimizer = Term(L1(0.1), net), SGD([net[0].weight, net[0].bias], lr=0.1)
    assert [p is net[0].weight for p in acted_on(bound, optimizer)] == [True]
    optimizer.param_groups[0]["params"][0] = net[1].weight
    assert [p is net[1].weight for p in acted_on(bound, optimizer)] == [True]


def test_a_module_that_comes_later_brings_in_tensors_that_a_group_held_before() -> None:
    net, late = a_net(), nn.Linear(2, 2)
    late.weight.grad = torch.zeros_like(late.weight)
    optimizer = SGD([net[0].weight, late.weight], lr=0.1)
    bound = Term(L1(0.1), net)
    assert len(acted_on(bound, optimizer)) == 1
    net.append(late)
    last = nn.Linear(2, 2)
    net.append(last)
    last.weight.grad = torch.zeros_like(last.weight)
    optimizer.add_param_group({"params": [last.weight]})  # unknown, so the module is looked at again
    acted_on(bound, optimizer)
    assert len(acted_on(bound, optimizer)) == 3


def test_freezing_and_missing_gradients_are_asked_for_at_every_step() -> None:
    net = a_net()
    bound, optimizer = Term(L1(0.1), net), SGD(net.parameters(), lr=0.1)
    assert len(acted_on(bound, optimizer)) == 2
    net[0].weight.requires_grad_(False)
    net[1].weight.grad = None
    assert acted_on(bound, optimizer) == []
    net[0].weight.requires_grad_(True)
    assert len(acted_on(bound, optimizer)) == 1


def test_a_value_is_that_of_what_is_trainable_and_not_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    term = Term(L1(1.0), model)
    sums = [float(layer.weight.detach().abs().sum()) for layer in model]
    assert float(term.value(1.0).detach()) == pytest.approx(sum(sums))
    model[0].weight.requires_grad_(False)
    assert float(term.value(1.0).detach()) == pytest.approx(sums[1] + sums[2])
    term.untrained.ask(model[2].weight.sum(), [model[1].weight, model[2].weight])
    assert float(term.value(1.0).detach()) == pytest.approx(sums[2])
    assert [name for name, _ in term.sizes_by_layer()] == ["2.weight"]
    assert torch.equal(term._sizes(), model[2].weight.detach().abs().flatten())
    term.untrained.end()
    told = {model[0].weight: True, model[2].weight: False}
    assert float(term.value(1.0, toggled=told).detach()) == pytest.approx(sums[0] + sums[1])
