"""The weights of evaluation under optimizers that train at others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from lightning_reg.callbacks import RegularizationMonitor
from lightning_reg.metrics import ParameterNorm, evaluated, group_sparsity, parameter_norm
from tests.support import Net, fit, weights


class Swapping(SGD):
    """As schedule-free optimizers do it: ``eval()`` moves the weights, and ``train()`` moves them back."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            group["train_mode"] = True

    def _swap(self, factor: float, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not training:
                with torch.no_grad():
                    for p in group["params"]:
                        p.mul_(factor)
            group["train_mode"] = training

    def eval(self) -> None:
        self._swap(3.0, False)

    def train(self) -> None:
        self._swap(1 / 3.0, True)


def _trained(*callbacks: Any) -> Tensor:
    net = Net(lambda parameters: Swapping(parameters, lr=0.01))
    fit(net, *callbacks, steps=4, log_every_n_steps=1)
    return weights(net)


def test_the_monitor_sees_the_weights_of_evaluation_and_moves_none() -> None:
    monitor = RegularizationMonitor(table=False)
    start = Net().net[0].weight.detach().norm()
    assert torch.equal(_trained(monitor), _trained())
    assert abs(monitor.history[0]["norm/net.0.weight"] / (3 * float(start)) - 1) < 1e-5


class Measured(Net):
    """Measures itself between the forward and the backward pass."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        before = parameter_norm(self.net[0].weight)
        norm = ParameterNorm(select="net.0.weight")
        norm.update(self)
        torch.testing.assert_close(norm.compute(), 3 * before)
        torch.testing.assert_close(parameter_norm(self, "net.0.weight"), 3 * before)
        assert group_sparsity(self, tolerance=float(before)) == group_sparsity(
            [p * 3 for p in self.parameters() if p.dim() > 1], tolerance=float(before)
        )
        with evaluated(self.trainer.optimizers[0]):
            torch.testing.assert_close(parameter_norm(self.net[0].weight), 3 * before)
        assert parameter_norm(self.net[0].weight) == before
        return loss


def test_metrics_of_a_module_in_a_fit_are_of_the_weights_of_evaluation() -> None:
    found = []
    for kind in (Measured, Net):
        net = kind(lambda parameters: Swapping(parameters, lr=0.01))
        fit(net, steps=2)
        found.append(weights(net))
    assert torch.equal(*found)
