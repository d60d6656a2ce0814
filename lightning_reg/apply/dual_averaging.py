r"""The memory of ``apply="proximal"``: an average for each weight, kept in the optimizer's own state.

:mod:`lightning_reg.prox.dual_averaging` has the formula. Of the t-th step that acts on a tensor, the average
takes the share :math:`a_t = \min(1, k/(t + k - 1))`, so that it forgets what is older than about t/k steps.
With k = 4, what the first half of a run has left in it is a sixteenth.

The state lies in ``optimizer.state[parameter]`` under a key of each term, beside what the optimizer keeps
there, so it is saved, restored and sharded with that: the average, in units of λ, and the number of steps. A
16-bit weight has a second tensor of its dtype for the bits that the first cannot hold. What is in units of λ
needs no change where λ changes. Another k acts from the next step on. A tensor without an average of its
shape begins anew, with a plain proximal step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply.term import DualAveraging, Term
from lightning_reg.penalties.bound import Held
from lightning_reg.tensors.chunks import pieces
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import accumulator, wide
from lightning_reg.tensors.shards import local, local_parts
from lightning_reg.tensors.steps import StepSize

__all__ = [
    "added_bytes",
    "check_dual_averaging",
    "forget_averages",
    "forgetting",
    "hold_",
    "is_average",
    "key_of",
    "make_averages_",
]

_PREFIX = "lightning_reg/"
#: Beside the average itself: its low bits, its steps, and what :mod:`~lightning_reg.apply.clipped` keeps.
_PARTS = ("low", "step", "clip", "clips", "rows")
#: k where nothing else is asked for.
USUAL = 4.0


def check_dual_averaging(value: object, apply: str) -> None:
    """Refuse what is neither a switch nor a k.

    Raises:
        ValueError: a number below 1, or anything but True without ``apply="proximal"``.
    """
    if not isinstance(value, (bool, int, float)) or not (isinstance(value, bool) or value >= 1.0):
        raise ValueError(
            f"dual_averaging={value!r} is neither True nor False nor a number from 1 on; 4 averages over the "
            "last quarter of the steps, 8 over the last eighth"
        )
    if value is not True and apply != "proximal":
        raise ValueError(
            f"dual_averaging={value!r} is for apply='proximal', not for apply={apply!r}; leave it out"
        )


def forgetting(value: DualAveraging) -> float | None:
    """Return k, or None for the plain proximal step."""
    if isinstance(value, bool):
        return USUAL if value else None
    return float(value)


def hold_(
    term: Term, optimizer: Optimizer, weights: Sequence[Tensor], steps: Sequence[StepSize], strength: float
) -> list[int]:
    """Keep weights at zero, or at a bound, where their averages say so, and move the averages on.

    Args:
        term: the penalty or constraint at work.
        optimizer: holds the averages, after its step.
        weights: what it has stepped of the term's selection.
        steps: a step size for each; where it is 0, the average stays as it is.
        strength: λ, not 0.

    Returns:
        Positions in ``weights`` of those that still want the proximal step: all where nothing is averaged.
    """
    k = forgetting(term.dual_averaging)
    left = set(range(len(weights)))
    if k is not None and term.bound.holds_zeros:
        for positions, held in _with_averages(term, optimizer, weights, steps, k):
            wanted = {positions[i] for i in term.bound.hold_zeros_(held, strength)}
            left -= set(positions) - wanted
    return sorted(left)


def _with_averages(
    term: Term, optimizer: Optimizer, weights: Sequence[Tensor], steps: Sequence[StepSize], k: float
) -> Iterator[tuple[Sequence[int], Held]]:
    """Yield positions in ``weights``, and what is there with its averages.

    These move on, and 16-bit ones are put together from their two parts, and taken apart when control comes
    back.
    """
    key, elementwise = key_of(term), term.bound.elementwise
    counter = f"{key}/step"
    positions: list[int] = []
    averages: list[tuple[Tensor, ...]] = []
    shares: list[float] = []
    for i, (weight, step) in enumerate(zip(weights, steps, strict=True)):
        if step.numerator == 0.0:
            continue
        state = optimizer.state[weight]
        average = _average_of(state, key, weight)
        count = state[counter] = state.get(counter, 0) + 1
        share = min(1.0, k / (count + k - 1.0))
        if elementwise and len(average) == 2:
            yield from _in_pieces(i, weight, average, step, share)
            continue
        positions.append(i)
        averages.append(average)
        shares.append(share)
    if not positions:
        return
    held, sizes = [weights[i] for i in positions], [steps[i] for i in positions]
    kept = [_opened(average) for average in averages]
    if elementwise and term.sharded:
        yield positions, Held(local_parts(held), local_parts(kept), [s.local() for s in sizes], shares)
        return
    yield positions, Held(held, kept, sizes, shares)
    for average, result in zip(averages, kept, strict=True):
        if len(average) == 2:
            _close_(average, result)


def _in_pieces(
    position: int, weight: Tensor, average: tuple[Tensor, ...], step: StepSize, share: float
) -> Iterator[tuple[Sequence[int], Held]]:
    """One 16-bit weight, a piece at a time."""
    step = step.local()
    for piece, high, low, *moments in pieces(local(weight), *map(local, average), *step.tensors):
        kept = _opened((high, low))
        yield [position], Held([piece], [kept], [step.taking(moments)], [share])
        _close_((high, low), kept)


@without_grad
def make_averages_(term: Term, optimizer: Optimizer, is_saved: Callable[[str], bool]) -> None:
    """Make room for averages in a step with rates of 0.

    By such a step :mod:`torch.distributed.checkpoint` fills the state of an optimizer; then it loads what it
    finds there, and nothing else.

    Args:
        term: the penalty or constraint at work.
        optimizer: after its step.
        is_saved: whether the checkpoint has an entry whose name ends so.
    """
    if any(group.get("lr") != 0 for group in optimizer.param_groups):  # at each step but this one
        return
    if forgetting(term.dual_averaging) is None or not term.bound.holds_zeros:
        return
    key = key_of(term)
    for parameter in (p for _, parameters in term.stepped(optimizer) for p in parameters):
        if is_saved(f"{term.name_of(parameter)}.{key}"):
            _average_of(optimizer.state[parameter], key, parameter)
            optimizer.state[parameter].setdefault(f"{key}/step", 0)


def added_bytes(term: Term, apply: str) -> int:
    """Return what the averages of a term at work take in the optimizer's state, in this process."""
    if apply != "proximal" or forgetting(term.dual_averaging) is None or not term.bound.holds_zeros:
        return 0
    held = [local(s.parameter) for s in term.selected if s.parameter.requires_grad]
    return sum(w.nbytes * (1 if accumulator(w.dtype) is None else 2) for w in held)


def forget_averages(term: Term, optimizer: Optimizer) -> None:
    """Take the term's averages out of the optimizer's state."""
    key = key_of(term)
    for parameter, state in list(optimizer.state.items()):
        found = [state.pop(name, None) for name in (key, *(f"{key}/{part}" for part in _PARTS))]
        if not state and any(value is not None for value in found):
            del optimizer.state[parameter]  # an optimizer without a state of its own


def is_average(name: str) -> bool:
    """Whether an entry of an optimizer's state is one of these."""
    return name.startswith(_PREFIX)


def key_of(term: Term) -> str:
    """Return the key of the term in an optimizer's state."""
    return _PREFIX + term.label


def _average_of(state: dict[str, Any], key: str, weight: Tensor) -> tuple[Tensor, ...]:
    """The average of one weight, as tensors of the weight's dtype that add up to it."""
    names = (key,) if accumulator(weight.dtype) is None else (key, f"{key}/low")
    for name in names:
        found = state.get(name)
        if not isinstance(found, Tensor) or found.shape != weight.shape:
            state[name] = torch.zeros_like(weight)
            state.pop(f"{key}/step", None)
        elif found.dtype != weight.dtype or found.device != weight.device:
            state[name] = found.to(weight)
        elif len(names) == 1:
            return (found,)
    return tuple([state[name] for name in names])


def _opened(average: tuple[Tensor, ...]) -> Tensor:
    """One tensor in float32 or wider."""
    return average[0] if len(average) == 1 else wide(average[0]) + wide(average[1])


def _close_(average: tuple[Tensor, ...], value: Tensor) -> None:
    """The same as two of 16 bits."""
    high, low = average
    high.copy_(value)
    low.copy_(value - wide(high))
