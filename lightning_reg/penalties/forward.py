"""What a penalty on the forward pass is: a function of a module's inputs and outputs, batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_reg.penalties.batch_dimension import Order, order_of
from lightning_reg.schedules.base import ScheduleLike, evaluate
from lightning_reg.select.modules import ModuleSelect, select_modules
from lightning_reg.select.wrappers import unwrapped
from lightning_reg.tensors.safe_globals import allow_in_checkpoints

__all__ = ["Call", "ForwardPenalty", "Recorder"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: what went in, and what came out.

    Attributes:
        module: the module.
        args: its arguments.
        kwargs: those given by name.
        output: what it returned.
        order: how it lays out sequences, see :func:`~lightning_reg.penalties.batch_dimension.order_of`.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    order: Order | None = None

    def output_tensor(self) -> Tensor:
        """Return the output, in float32 or wider; of torch's recurrent and attention layers the first one.

        Raises:
            TypeError: the module returned something else than a tensor.
        """
        output, module = self.output, unwrapped(self.module)
        if isinstance(output, tuple) and isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            output = output[0]
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{type(module).__name__} returns {type(output).__name__} and not a tensor; "
                "name a module inside it that does with modules="
            )
        half = output.dtype in (torch.float16, torch.bfloat16)
        return output.float() if half else output


class ForwardPenalty(ABC):
    """A penalty on what a module computes for a batch.

    It acts as a term of the loss: through a
    :class:`~lightning_reg.callbacks.ForwardPenaltyCallback`, through ``penalties=`` of a
    :class:`~lightning_reg.RegularizedModule`, or in any loop with :meth:`record`. Subclasses are frozen
    dataclasses and hold no state.

    Attributes:
        modules: whose calls are penalized; several calls in one step add up.
    """

    modules: ModuleSelect
    needs_input_gradient: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        allow_in_checkpoints(cls)

    @property
    @abstractmethod
    def schedule(self) -> ScheduleLike:
        """The strength, a number or a schedule."""

    @property
    @abstractmethod
    def log_name(self) -> str:
        """The name in logs."""

    @abstractmethod
    def value(self, call: Call, strength: float) -> Tensor:
        """Return the penalty of one call, a differentiable scalar, the mean over the batch."""

    @contextmanager
    def record(self, module: nn.Module) -> Iterator[Recorder]:
        """Watch ``module`` in a loop of your own: ``with penalty.record(model) as term: ...``.

        Inside, call the model, and add ``term.value()`` to the loss.
        """
        recorder = Recorder(self, module)
        try:
            yield recorder
        finally:
            recorder.remove()


class Recorder:
    """A forward penalty bound to a module: it sees the calls of a training step and sums their terms.

    Args:
        penalty: what is penalized.
        module: the module in which ``penalty.modules`` is resolved.
        active: asked at each call whether it counts; every call in training mode where None.

    Raises:
        ValueError: no module matches, or the strength is out of range.
    """

    def __init__(
        self, penalty: ForwardPenalty, module: nn.Module, active: Callable[[], bool] | None = None
    ) -> None:
        self.penalty = penalty
        self._active = active
        self._calls: list[Call] = []
        self._replaying = False
        self._handles: list[RemovableHandle] = []
        self._orders: dict[int, Order | None] = {}
        try:
            found = select_modules(module, penalty.modules)
        except ValueError as error:
            raise ValueError(
                f"{error}; what forward calls as a function, such as torch.relu, is not a module"
            ) from None
        for selected in found:
            chosen = selected.outer  # hooks of a compiled module's inside would be compiled too
            self._orders[id(chosen)] = order_of(selected)
            if penalty.needs_input_gradient:
                self._handles.append(chosen.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(chosen.register_forward_hook(self._after, with_kwargs=True))

    def value(self, step: int = 0, total_steps: int | None = None) -> Tensor:
        """Return the sum over the calls seen since the last :meth:`clear`, and forget them.

        Raises:
            RuntimeError: no call was seen.
        """
        strength = evaluate(self.penalty.schedule, step, total_steps)
        calls, self._calls = self._calls, []
        if not calls:
            raise RuntimeError(
                f"{self.penalty!r} saw no call of modules={self.penalty.modules!r} in training mode in this "
                "step; name a module that the step calls (a LightningModule itself only counts when it is "
                "called as self(x))"
            )
        self._replaying = True
        try:
            device = calls[0].output_tensor().device.type
            with torch.autocast(device, enabled=False):
                return torch.stack([self.penalty.value(call, strength) for call in calls]).sum()
        finally:
            self._replaying = False

    def clear(self) -> None:
        """Forget the calls seen so far."""
        self._calls = []

    def remove(self) -> None:
        """Take the hooks off the module again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        copied = object.__new__(Recorder)  # a copy of the module is not watched
        copied.penalty, copied._calls, copied._handles, copied._orders = self.penalty, [], [], {}
        copied._replaying, copied._active = True, None
        return copied

    def __reduce__(self) -> Any:
        raise TypeError("a module under a forward penalty cannot be pickled while it is being fitted")

    def _watches(self, module: nn.Module) -> bool:
        if not module.training or not torch.is_grad_enabled() or self._replaying:
            return False
        return self._active is None or self._active()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._watches(module):
            return None
        followed = tuple(
            value.detach().requires_grad_()
            if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad
            else value
            for value in args
        )
        return followed, kwargs

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._watches(module):
            self._calls.append(Call(module, args, kwargs, output, self._orders.get(id(module))))
