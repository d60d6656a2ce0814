"""What was added to a gradient reaches the step, or the first steps say that it does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from lightning_reg import L1, L2, attach
from lightning_reg.callbacks import PenaltyCallback
from tests.support import QUIET

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module) -> Tensor:
    return (model(X) - Y).square().mean()


class Own(SGD):
    """Changes the gradients inside its step, in one way or another."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.held, self.change = [model], change

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            with torch.enable_grad():
                closure()
        parameters = list(self.held[0].parameters())
        with torch.enable_grad():
            fresh = torch.autograd.grad(loss_of(self.held[0]), parameters)
        for p, own in zip(parameters, fresh, strict=True):
            assert p.grad is not None
            self.change(p.grad, own, p)
        return super().step()


def rebuilt(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    gradient.copy_(own)


def clipped_with_noise(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    draw = torch.Generator().manual_seed(own.numel())
    gradient.copy_(own * 0.5 + 1e-4 * torch.randn(own.shape, generator=draw))


def made_orthogonal(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    """To the weights: nothing of an L2 is left."""
    along = weight.detach() / weight.detach().norm()
    gradient.sub_((gradient * along).sum() * along)


def scaled(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    gradient.mul_(0.3)


def decayed(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    gradient.add_(weight.detach(), alpha=0.05)


def centred(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    gradient.sub_(gradient.mean(-1, keepdim=True))


def signs(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    gradient.sign_()


def noisy(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    gradient.add_(torch.randn(own.shape, generator=torch.Generator().manual_seed(0)))


def zeroed(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    gradient.zero_()


def nothing(gradient: Tensor, own: Tensor, weight: Tensor) -> None:
    pass


class Fitted(LightningModule):
    def __init__(self, net: nn.Module, change: Any, manual: bool) -> None:
        super().__init__()
        self.net, self.change = net, change
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = loss_of(self.net)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Optimizer:
        return Own(self.net, self.change)


def said_by(way: str, change: Any, penalty: Any) -> list[str]:
    """The warnings of four steps."""
    torch.manual_seed(0)
    net = nn.Linear(6, 4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if way == "attach":
            optimizer = Own(net, change)
            attach(net, optimizer, penalty)
            for _ in range(4):
                optimizer.zero_grad()
                loss_of(net).backward()
                optimizer.step()
        else:
            module = Fitted(net, change, manual=way == "manual")
            options = {} if way == "manual" else {"gradient_clip_val": 0.1}
            loader = DataLoader(torch.zeros(4, 1))  # type: ignore[arg-type, var-annotated]
            callbacks: Any = [PenaltyCallback(penalty, log=False)]
            Trainer(callbacks=callbacks, max_epochs=1, **options, **QUIET).fit(module, loader)
    assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    return [str(w.message) for w in said if "may not count" in str(w.message)]


@pytest.mark.parametrize("way", ["attach", "callback", "manual"])
@pytest.mark.parametrize("change", [rebuilt, clipped_with_noise])
@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1)], ids=["L1", "L2"])
def test_a_gradient_without_what_was_added_is_said_once(way: str, change: Any, penalty: Any) -> None:
    (said,) = said_by(way, change, penalty)
    assert said.startswith(f"{penalty!r} may not count: Own makes gradients of its own inside its step")


def test_a_gradient_from_which_all_of_an_l2_is_taken_is_said() -> None:
    (said,) = said_by("attach", made_orthogonal, L2(0.1))
    assert "may not count" in said


@pytest.mark.parametrize("change", [scaled, decayed, centred, signs, noisy, zeroed, nothing])
@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1), L2(1e-6)], ids=["L1", "L2", "little"])
def test_a_gradient_that_changes_with_what_was_added_is_not(change: Any, penalty: Any) -> None:
    assert said_by("attach", change, penalty) == []


@pytest.mark.parametrize("change", [scaled, nothing])
def test_clipping_by_the_trainer_is_no_gradient_of_its_own(change: Any) -> None:
    assert said_by("callback", change, L1(0.1)) == []
