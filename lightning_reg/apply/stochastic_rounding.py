r"""Stochastic rounding of 16-bit weights, so that a step smaller than their spacing is not lost.

A bfloat16 weight has 8 significant bits: what moves it by less than :math:`2^{-9}` of its size is rounded
away, at every step anew. So a 16-bit weight is acted on in float32, and the result :math:`x` goes to one of
its two 16-bit neighbours, up with probability :math:`(x - x_{lo})/(x_{hi} - x_{lo})`: its mean is :math:`x`.

The random bits are a pure function of the optimizer step, the term and the tensor's name. So there is no
state to keep, torch's generators are left alone, a resumed run repeats them, and replicas agree. What is a
16-bit number already stays as it is; zeros stay zeros.

References:
    Gupta, Agrawal, Gopalakrishnan and Narayanan, *Deep Learning with Limited Numerical Precision*, ICML 2015;
    Zamirai, Zhang, Aberger and De Sa, *Revisiting BFloat16 Training*, 2021, for weight updates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_reg.apply.term import Term
from lightning_reg.penalties.bound import Bound
from lightning_reg.tensors.chunks import pieces
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.precision import wide
from lightning_reg.tensors.shards import local, local_parts
from lightning_reg.tensors.steps import StepSize

__all__ = ["generator_at", "round_", "rounded_after"]

#: Bits of a float32 that the 16-bit format lacks.
_DROPPED = {torch.bfloat16: 16, torch.float16: 13}
#: The smallest normal float16, below which its spacing stays the same.
_TINY = 2.0**-14


def rounded_after(
    term: Term, weights: Sequence[Tensor], steps: Sequence[StepSize], clock: Callable[[], int]
) -> Iterator[tuple[Bound, Sequence[Tensor], Sequence[StepSize]]]:
    """Yield what to act on in place: all the weights, or 16-bit ones in float32, rounded when they come back.

    Args:
        term: what acts on each weight by itself gets the part that this process holds.
        weights: changed in place.
        steps: a step size for each.
        clock: the optimizer steps taken.

    Yields:
        A binding, weights and their step sizes.
    """
    bound, held, sizes = term.bound, weights, steps
    if term.sharded and bound.elementwise:
        held, sizes = local_parts(weights), [s.local() for s in steps]
    narrow = [i for i, weight in enumerate(held) if weight.dtype in _DROPPED]
    if not narrow:
        yield bound, held, sizes
        return
    rest = [i for i in range(len(held)) if i not in set(narrow)]
    if rest and not bound.couples:
        yield bound, [held[i] for i in rest], [sizes[i] for i in rest]
    for block in [[*range(len(held))]] if bound.couples else [[i] for i in narrow]:
        some, theirs = [held[i] for i in block], [sizes[i] for i in block]
        generators = [generator_at(clock(), term.place(weights[i]), held[i].device) for i in block]
        if bound.elementwise:
            yield from _in_pieces(bound, some[0], theirs[0], generators[0])
        else:
            yield from _together(bound, some, theirs, generators)


def _in_pieces(
    bound: Bound, weight: Tensor, size: StepSize, generator: torch.Generator
) -> Iterator[tuple[Bound, Sequence[Tensor], Sequence[StepSize]]]:
    for piece, *moments in pieces(weight, *size.tensors):
        other = wide(piece)
        yield bound, [other], [size.taking(moments).wide()]
        piece.copy_(round_(other, piece.dtype, generator))


def _together(
    bound: Bound,
    weights: Sequence[Tensor],
    sizes: Sequence[StepSize],
    generators: Sequence[torch.Generator],
) -> Iterator[tuple[Bound, Sequence[Tensor], Sequence[StepSize]]]:
    others = [wide(weight) for weight in weights]
    yield bound.standing_in(weights, others), others, [size.wide() for size in sizes]
    for weight, other, generator in zip(weights, others, generators, strict=True):
        if other is not weight:
            local(weight).copy_(round_(local(other), weight.dtype, generator))


@without_grad
def round_(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    r"""Round float32 numbers in place to ones that ``dtype`` has, up or down at random, and return them.

    The mean is the number itself; for float16 numbers below :math:`2^{-14}` to within :math:`2^{-38}`.
    Infinities and NaN stay.

    Args:
        x: of dtype float32.
        dtype: bfloat16 or float16.
        generator: on the device of ``x``.

    >>> x = torch.full((10_000,), 1 + 2**-9)  # a quarter of the way from 1 to the next bfloat16
    >>> float(round_(x, torch.bfloat16, torch.Generator().manual_seed(0)).mean())
    1.00...
    """
    dropped = _DROPPED[dtype]
    offset = None
    if dtype == torch.float16:  # beside 2⁻¹⁴ a float32 has 13 bits below float16's last, as elsewhere
        offset = torch.where(x.abs() < _TINY, torch.full_like(x, _TINY).copysign_(x), 0.0)
        x.add_(offset)
    noise = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    noise.random_(0, 1 << dropped, generator=generator)
    bits = noise.add_(x.view(torch.int32)).bitwise_and_(-(1 << dropped))
    torch.where(x.isfinite(), bits.view(torch.float32), x, out=x)  # a NaN's bits could carry
    return x if offset is None else x.sub_(offset)


def generator_at(step: int, place: str, device: torch.device) -> torch.Generator:
    """Return a generator for one tensor at one step."""
    seed = hashlib.blake2b(f"{step} {place}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(seed, "little"))
