"""Projections, and the decay that keeps a budget."""

import torch

from lightning_reg.prox.projections import spend_budget_


def test_a_weight_far_above_its_budget_goes_to_zero_and_not_through_it():
    weight, multiplier = torch.tensor([3.0, -4.0]), torch.tensor(0.0)
    spend_budget_(weight, multiplier, torch.tensor(0.1), rate=1.0)  # λ would be 12.5 / 0.1 − 1
    assert torch.equal(weight, torch.zeros(2)) and multiplier == 1.0


def test_a_weight_within_its_budget_is_left_alone():
    weight, multiplier = torch.tensor([3.0, -4.0]), torch.tensor(0.0)
    spend_budget_(weight, multiplier, torch.tensor(20.0), rate=1.0)
    assert torch.equal(weight, torch.tensor([3.0, -4.0])) and multiplier == 0.0
