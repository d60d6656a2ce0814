"""What penalties by power iteration share: a vector for each tensor, kept from step to step."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_reg.penalties._each_tensor import each_tensor
from lightning_reg.penalties.base import Penalty
from lightning_reg.penalties.bound import Bound, added_up
from lightning_reg.select.parameters import Selected
from lightning_reg.tensors.grad_mode import without_grad
from lightning_reg.tensors.shards import whole
from lightning_reg.tensors.spectra import as_matrix, start_vector
from lightning_reg.tensors.steps import StepSize

__all__ = ["IteratedPenalty"]

#: Iterations on a tensor seen for the first time, so that the first steps are not led astray.
WARM_UP = 20


class IteratedPenalty(Penalty):
    """A penalty whose formula on a bare tensor is exact, and that iterates when it is bound."""

    iterations: int

    def _check_iterations(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"{type(self).__name__}(iterations={self.iterations!r}) must be 1 or more")

    @abstractmethod
    def iterate(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """Return the next vector."""

    @abstractmethod
    def value_at(self, matrix: Tensor, vector: Tensor, strength: float) -> Tensor:
        """Return the value, differentiable in ``matrix``, at a vector that has converged."""

    @abstractmethod
    def gradient_at(self, matrix: Tensor, vector: Tensor, strength: float) -> Tensor:
        """Return the gradient in ``matrix``, likewise."""

    @abstractmethod
    def vector_length(self, matrix: Tensor) -> int:
        """Return how long the vector is."""

    def bind(self, selected: Sequence[Selected]) -> Bound:
        """Start a power iteration for each tensor."""
        return each_tensor(_Iterations(self, selected), self, selected)


class _Iterations(Bound):
    """An iterated penalty and its vectors."""

    def __init__(self, penalty: IteratedPenalty, selected: Sequence[Selected]) -> None:
        self.penalty = penalty
        self._selected = list(selected)
        self._names = {id(s.parameter): s.name for s in self._selected}
        self._vectors: dict[str, Tensor] = {}

    def standing_in(self, weights: Sequence[Tensor], others: Sequence[Tensor]) -> Bound:
        """Return this with the vectors of ``weights``, which it moves on, for ``others``."""
        twin = copy.copy(self)
        twin._names = {id(o): self._names[id(w)] for w, o in zip(weights, others, strict=True)}
        return twin

    def at_rest(self) -> Bound:
        """Return this with vectors of its own."""
        twin = copy.copy(self)
        twin._vectors = dict(self._vectors)  # they are replaced, never written to
        return twin

    def total(self, weights: Sequence[Tensor], strength: float, like: Tensor) -> Tensor:
        """Sum over the tensors; the vectors move only where a gradient is wanted: a log changes nothing."""
        keep = torch.is_grad_enabled()

        def value(weight: Tensor) -> Tensor:
            matrix = as_matrix(whole(weight))
            return self.penalty.value_at(matrix, self._next(weight, matrix.detach(), keep=keep), strength)

        return added_up(map(value, weights if strength else ()), like)

    def gradient(self, weight: Tensor, strength: float) -> Tensor:
        """Return the gradient of one tensor, whole, and move its vector on."""
        matrix = as_matrix(whole(weight.detach()))
        gradient = self.penalty.gradient_at(matrix, self._next(weight, matrix, keep=True), strength)
        return gradient.to(weight.dtype).view(weight.shape)

    def prox_(self, weights: Sequence[Tensor], strength: float, steps: Sequence[StepSize]) -> None:
        """``w ← prox(w)``; exact, and without the vectors."""
        self.penalty.prox_(weights, strength, steps)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the vectors."""
        return {name: vector.detach().clone() for name, vector in self._vectors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the vectors."""
        names = set(self._names.values())
        self._vectors = {name: vector.clone() for name, vector in state.items() if name in names}

    @without_grad
    def _next(self, weight: Tensor, matrix: Tensor, keep: bool) -> Tensor:
        name, length = self._names[id(weight)], self.penalty.vector_length(matrix)
        vector, steps = self._vectors.get(name), self.penalty.iterations
        if vector is None or vector.numel() != length:
            vector, steps = start_vector(length, matrix), max(steps, WARM_UP)
        vector = vector.to(matrix)
        for _ in range(steps):
            vector = self.penalty.iterate(matrix, vector)
        if keep:
            self._vectors[name] = vector
        return vector
