"""What regularization is doing to a model, layer by layer, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply import Term
from lightning_reg.apply.gradient import add_to_
from lightning_reg.dropout import DropoutSite, find_sites
from lightning_reg.metrics.functional import named_tensors
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.precision import norm
from lightning_reg.tensors.shards import whole

__all__ = [
    "Acting",
    "LayerState",
    "Rate",
    "dropout_rates",
    "gradient_ratios",
    "layer_states",
    "optimizer_state",
    "rates_at",
]


@dataclass(frozen=True)
class LayerState:
    """One parameter tensor at one moment.

    Attributes:
        name: the parameter's name.
        entries: how many weights it has.
        sparsity: the fraction of exact zeros.
        norm: the Euclidean norm.
    """

    name: str
    entries: int
    sparsity: float
    norm: float


@torch.no_grad()
def layer_states(module: nn.Module, select: Select = "weights") -> list[LayerState]:
    """Return the state of each selected tensor, with one transfer from the device for all.

    >>> layer_states(nn.Linear(2, 3, bias=False))[0].entries
    6
    """
    counts: list[tuple[str, int]] = []
    numbers: list[Tensor] = []
    for name, tensor in named_tensors(module, select):
        counts.append((name, tensor.numel()))
        numbers.append(torch.stack([(tensor == 0).sum().double(), norm(tensor).double()]).cpu())
    return [
        LayerState(name, entries, float(zeros) / max(entries, 1), float(length))
        for (name, entries), (zeros, length) in zip(counts, numbers, strict=True)
    ]


@dataclass(frozen=True)
class Rate:
    """The rate of one place that drops, at one moment.

    Attributes:
        name: the place.
        kind: what is dropped together, ``"element"``.
        rate: the probability of dropping.
    """

    name: str
    kind: str
    rate: float


def dropout_rates(module: nn.Module) -> list[Rate]:
    """Return the current rate of every known place that drops.

    >>> dropout_rates(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)))
    [Rate(name='1.p', kind='element', rate=0.3)]
    """
    return rates_at(find_sites(module))


def rates_at(sites: Iterable[DropoutSite]) -> list[Rate]:
    """Return the current rates of places that were found before."""
    return [Rate(site.name, site.kind, site.get()) for site in sites]


@dataclass(frozen=True)
class Acting:
    """A penalty at work, as a report names it.

    Attributes:
        name: its name in the report, which no other has.
        term: the penalty as bound in the run, with what it has learned there.
        apply: how it acts.
        in_gradients: whether the gradients at hand hold its gradient already.
    """

    name: str
    term: Term
    apply: str
    in_gradients: bool


@torch.no_grad()
def gradient_ratios(optimizer: Optimizer, acting: Sequence[Acting], step: int) -> dict[str, float]:
    """Return ‖∇penalty‖/‖∇loss‖ by the name of the penalty, each over the weights that it penalizes.

    The gradient of the loss is what the parameters hold, less the penalties already in it; the ratio is
    infinite where the loss has no gradient.

    Args:
        optimizer: the one that is about to step.
        acting: the penalties.
        step: optimizer steps taken, for scheduled strengths.
    """
    gradients = [_gradients(one.term, optimizer, one.term.strength(step)) for one in acting]
    above, below = [0.0] * len(acting), [0.0] * len(acting)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            mine = [index for index, found in enumerate(gradients) if id(parameter) in found]
            if not mine:
                continue
            loss = whole(parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad)
            for index in mine:
                gradient = whole(gradients[index][id(parameter)])
                above[index] += float(norm(gradient)) ** 2
                if acting[index].in_gradients:
                    loss = loss - gradient
            length = float(norm(loss)) ** 2
            for index in mine:
                below[index] += length
    return {
        one.name: (up / down) ** 0.5 if down else (0.0 if not up else float("inf"))
        for one, up, down in zip(acting, above, below, strict=True)
    }


def _gradients(term: Term, optimizer: Optimizer, strength: float) -> dict[int, Tensor]:
    """The penalty's gradient of each tensor about to be stepped, by the tensor's identity."""
    found: dict[int, Tensor] = {}

    def target(parameter: nn.Parameter) -> Tensor:
        return found.setdefault(id(parameter), torch.zeros_like(parameter))

    parameters = [p for _, stepped in term.stepped(optimizer) for p in stepped]
    for parameter in parameters:
        target(parameter)
    if strength != 0.0:
        add_to_(term, parameters, target, strength, at_rest=True)
    return found


def optimizer_state(size: int) -> str:
    """Return how much memory an optimizer's state takes, in words."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit} of optimizer state"
