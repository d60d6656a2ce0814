"""A decay by ``group["lr"]`` is refused under an optimizer that scales its steps by something else too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_reg import L1, L2, NonNegative, attach, register_optimizer
from lightning_reg.apply.optimizers import Facts
from lightning_reg.apply.optimizers.trial import tried


class Unknown(Optimizer):
    """Moves each weight by ``group["lr"]`` times a direction, times what a subclass says."""

    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None:
        super().__init__(params, {"lr": lr, **options})
        self.count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        for group in self.param_groups:
            for place, p in enumerate(group["params"]):
                direction = self.direction(group, p)
                p.sub_(direction * self.scale(group, p, direction, place), alpha=group["lr"])

    def direction(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """Adam's."""
        assert p.grad is not None
        state = self.state[p]
        state["m"] = state.get("m", torch.zeros_like(p)) * 0.9 + 0.1 * p.grad
        state["v"] = state.get("v", torch.zeros_like(p)) * 0.999 + 0.001 * p.grad**2
        state["t"] = state.get("t", 0) + 1
        corrected = state["v"] / (1 - 0.999 ** state["t"])
        return state["m"] / (1 - 0.9 ** state["t"]) / (corrected.sqrt() + 1e-8)

    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return 1.0


class Momentum(Unknown):
    def direction(self, group: dict[str, Any], p: Tensor) -> Tensor:
        assert p.grad is not None
        self.state[p]["m"] = self.state[p].get("m", torch.zeros_like(p)) * group["momentum"] + p.grad
        return self.state[p]["m"]  # type: ignore[no-any-return]


class TrustRatio(Unknown):
    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return float(p.norm() / direction.norm())


class Clipped(Unknown):
    """LARC: by a trust ratio, or by the learning rate where that is smaller."""

    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return min(1.0, 0.004 * float(p.norm() / direction.norm()) / group["lr"])


class WarmUp(Unknown):
    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return min(1.0, self.count / 100)


class Estimate(Unknown):
    """D-Adaptation by another name: its estimate grows."""

    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return float(1e-6 * 1.2**self.count)


class OwnDecay(Unknown):
    """Its decay and its steps are by a hundredth of the learning rate."""

    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        p.mul_(1 - 0.01 * group["lr"] * group["weight_decay"])
        return 0.01


class TrustedDecay(TrustRatio):
    """A trust ratio, and a decay of its own without."""

    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        p.mul_(1 - group["lr"] * group["weight_decay"])
        return super().scale(group, p, direction, place)


class Corrected(Unknown):
    """AdamC: its decay is measured by its own highest rate."""

    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        p.mul_(1 - group["lr"] ** 2 / group["max_lr"] * group["weight_decay"])
        return 1.0


class DecayInMomentum(Momentum):
    """NovoGrad's: added to a direction, before a momentum that gathers it."""

    def direction(self, group: dict[str, Any], p: Tensor) -> Tensor:
        assert p.grad is not None
        p.grad = p.grad / p.grad.norm() + group["weight_decay"] * p
        return super().direction(group, p)


class OfTheGroup(Unknown):
    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return float(group["lr_scale"])


class OfTheLayer(Unknown):
    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return float(0.8**place)


class OfItsGroup(Unknown):
    """Group by group, of the same options."""

    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return float(0.8 ** next(i for i, some in enumerate(self.param_groups) if some is group))


class DecayInGradient(OfTheGroup):
    """Without a momentum, and so as if it were decoupled."""

    def direction(self, group: dict[str, Any], p: Tensor) -> Tensor:
        assert p.grad is not None
        return p.grad + group["weight_decay"] * p


class Relative(Unknown):
    """Adafactor's rate: of the number of steps, not of the group."""

    def scale(self, group: dict[str, Any], p: Tensor, direction: Tensor, place: int) -> float:
        return float(min(0.01, self.count**-0.5) / group["lr"])


class Subclass(SGD):
    """Known, but for a step of its own."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * p.norm(), alpha=group["lr"])


class Around(Unknown):
    """Sets the rate of an optimizer inside it by a schedule of its own."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.inner = AdamW(self.param_groups[0]["params"], lr=lr, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        self.inner.param_groups[0]["lr"] = self.param_groups[0]["lr"] * min(1.0, self.count / 1000)
        self.inner.step()


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).to(dtype)


REFUSED = [
    (TrustRatio, {}, "scales its steps by the size of the weights"),
    (Clipped, {}, "scales its steps by the size of the weights"),
    (WarmUp, {}, "steps grow from the first on"),
    (Estimate, {}, "steps grow from the first on"),
    (OwnDecay, {"weight_decay": 0.0}, "the weight decay of its own shows"),
    (OfTheGroup, {"lr_scale": 0.5}, "scales its steps by its option lr_scale"),
    (DecayInGradient, {"lr_scale": 3.0, "weight_decay": 0.0}, "scales its steps by its option lr_scale"),
    (OfTheLayer, {}, "scales the steps of some layers"),
    (Relative, {}, "steps do not follow the learning rate of its groups"),
    (Subclass, {}, "scales its steps by the size of the weights"),
    (Around, {}, "steps grow from the first on"),
]


@pytest.mark.parametrize(("cls", "options", "reason"), REFUSED, ids=lambda cls: getattr(cls, "__name__", ""))
def test_steps_that_are_not_the_learning_rate_are_refused(cls: Any, options: Any, reason: str) -> None:
    model = network()
    optimizer = cls(model.parameters(), lr=0.1, **options)
    with pytest.raises(ValueError, match=f"{reason}.*use apply='gradient', or tell register_optimizer"):
        attach(model, optimizer, L2(0.1), apply="decoupled")
    with pytest.raises(ValueError, match=f"{reason}.*register_optimizer"):
        attach(model, optimizer, L1(0.1), apply="proximal", metric="euclidean")
    attach(model, optimizer, L1(0.1)).remove()
    attach(model, optimizer, NonNegative()).remove()  # a projection asks for no step


def test_groups_of_one_set_of_options_are_compared() -> None:
    model = network()
    optimizer = OfItsGroup([{"params": [parameter]} for parameter in model.parameters()])
    with pytest.raises(ValueError, match="scales the steps of some layers"):
        attach(model, optimizer, L2(0.1), apply="decoupled")


TAKEN: list[tuple[Any, dict[str, Any]]] = [
    (Unknown, {}),
    (Momentum, {"momentum": 0.9}),
    (Momentum, {"momentum": 0.99}),
    (OfTheGroup, {"lr_scale": 1.0}),
    (TrustedDecay, {"weight_decay": 0.0}),
    (Corrected, {"weight_decay": 0.0, "max_lr": 0.1}),
    (DecayInMomentum, {"weight_decay": 0.0, "momentum": 0.95}),
]


@pytest.mark.parametrize(("cls", "options"), TAKEN, ids=lambda cls: getattr(cls, "__name__", ""))
def test_what_steps_by_the_learning_rate_is_taken(cls: Any, options: Any) -> None:
    model = network()
    assert tried(cls(model.parameters(), **options), Facts()) == Facts()


def test_weights_of_16_bits_and_large_ones_show_it_too() -> None:
    halves = network(torch.bfloat16)
    large = nn.Linear(1024, 1024)
    for model in (halves, large):
        with pytest.raises(ValueError, match="by the size of the weights"):
            attach(model, TrustRatio(model.parameters()), L2(0.1), apply="decoupled")


def test_an_optimizer_that_has_stepped_is_tried_with_what_it_keeps() -> None:
    model = network()
    optimizer = TrustRatio(model.parameters())
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="by the size of the weights"):
        attach(model, optimizer, L2(0.1), apply="decoupled")


def test_a_rate_that_is_told_is_taken() -> None:
    class Told(WarmUp):
        pass

    register_optimizer(Told, rate=lambda group, state: group["lr"] * min(1.0, state.get("t", 0) / 100))
    model = network()
    optimizer = Told(model.parameters())
    attach(model, optimizer, L2(0.5), apply="decoupled")
    twin = network()
    other = Told(twin.parameters())
    for step in range(4):
        for own, p in zip(model.parameters(), twin.parameters(), strict=True):
            own.grad, p.grad = torch.ones_like(own), torch.ones_like(p)
            if p.dim() == 2:
                p.data.mul_(1 - 0.1 * min(1.0, step / 100) * 0.5)
        optimizer.step()
        other.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
