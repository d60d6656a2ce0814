"""Dropout for a network that has none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_reg.callbacks._dropout import DropoutCallback
from lightning_reg.dropout.compiled import compiled_modules
from lightning_reg.dropout.inject import (
    KINDS,
    InjectKind,
    after_of,
    check_modules,
    expect,
    modules_after,
    shapeless,
    uncalled,
)
from lightning_reg.dropout.report import some
from lightning_reg.dropout.rules import Rates
from lightning_reg.dropout.steering import RATE_AFTER, release, steer, take_again
from lightning_reg.hosts.trainer import run_length
from lightning_reg.schedules.base import ScheduleLike, check_schedule, evaluate
from lightning_reg.select.modules import ModuleSelect

__all__ = ["DropoutInjector"]


@dataclass(eq=False)
class _Hold:
    """What the callback holds for the run."""

    total: int | None
    rates: Rates | None = None
    chosen: list[tuple[str, Any]] = field(default_factory=list)
    applied: float | None = None
    waits: bool = False
    reported: bool = False


class DropoutInjector(DropoutCallback):
    r"""Adds dropout after chosen modules during the run, and removes it afterwards.

    The output y of a chosen module becomes, in training, :math:`m \odot y / (1 - p)` with one draw
    :math:`m \sim \text{Bernoulli}(1 - p)` a value (``"element"``) or a channel (``"channel"``, for outputs of
    shape ``(N, C, ...)``); or, for residual blocks of the same input and output shape, stochastic depth
    (``"depth"``), :math:`x + m\,(y - x)/(1 - p)` with one draw a sample.

    Three more kinds share a draw: ``"locked"`` over the time of a sequence (variational dropout), ``"word"``
    over all places of a word, after an embedding, and ``"block"`` over squares of a feature map (DropBlock).
    ``"weight"`` (DropConnect) drops weights of the module, :math:`W \odot M / (1 - p)`, once a batch: those
    of linear and convolutional layers, and the recurrent ones of RNNs.

    The names in ``state_dict``, the parameters and copies and pickles of the module are unchanged. What a
    module returns is looked at in its
    first forward of the run; a module that the first epoch never calls is named after it.

    Args:
        rate: a number in [0, 1], or a schedule of one.
        after: a glob over module names, a module class, a predicate ``(name, module) -> bool``, or a list.
        kind: ``"element"``, ``"channel"``, ``"depth"``, ``"locked"``, ``"word"``, ``"block"`` or
            ``"weight"``.
        name: the name in logs, ``dropout/<name>``.
        block_size: the width of a block, for ``"block"``.

    Raises:
        ValueError: a rate outside [0, 1]; at ``fit`` start, no module matches; in the first forward, one
            returns tuples, changes the shape (``"depth"``) or has its features last (``"channel"``,
            ``"block"``).

    >>> DropoutInjector(0.1, after="*.fc1")
    DropoutInjector(0.1, after='*.fc1', kind='element')

    References:
        Srivastava et al., JMLR 2014; Tompson et al., CVPR 2015 (channels); Huang et al., ECCV 2016 (depth);
        Gal and Ghahramani, NeurIPS 2016 (locked, word); Ghiasi et al., NeurIPS 2018 (block); Wan et al.,
        ICML 2013 (weight).
    """

    _hold: _Hold | None = None

    def __init__(
        self,
        rate: ScheduleLike,
        after: ModuleSelect,
        kind: InjectKind = "element",
        *,
        name: str | None = None,
        block_size: int = 7,
    ) -> None:
        if not callable(rate):
            evaluate(rate, 0, name="dropout rate", upper=1.0)
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is not understood; use {', '.join(map(repr, KINDS))}")
        if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
            raise ValueError(f"block_size={block_size!r} is no width; give a whole number of 1 or more")
        self.rate = rate
        self.after = after
        self.kind: InjectKind = kind
        self.block_size = block_size
        self.name = name if name is not None else "injected"

    @override
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._let_go()
        check_modules(modules_after(pl_module, self.after), self.kind)
        total = run_length(trainer)
        check_schedule(self.rate, total, name="dropout rate", upper=1.0)
        self._hold = _Hold(total)

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        hold = self._hold
        if hold is None or (hold.rates is None and self._waits(pl_module, hold)):
            return
        if hold.rates is None:
            hold.chosen = modules_after(pl_module, self.after)
            hold.rates = Rates(next((p.device for p in pl_module.parameters()), torch.device("cpu")), 1)
            after = after_of(self.kind, self.block_size)
            for _, module in hold.chosen:
                steer(module, RATE_AFTER, self, after=after, rates=hold.rates.rows[0])
            expect(hold.chosen)
        take_again()
        rate = evaluate(self.rate, trainer.global_step, hold.total, name="dropout rate", upper=1.0)
        if rate != hold.applied:
            hold.rates.fill([rate])
            for _, module in hold.chosen:
                module.__dict__[RATE_AFTER] = rate
            hold.applied = rate
        self._log(trainer, rate)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        hold = self._hold
        if hold is None or hold.reported or hold.rates is None or compiled_modules(pl_module):
            return
        hold.reported = True
        if names := uncalled(hold.chosen):
            rank_zero_warn(
                f"{some(names)} {'were' if len(names) > 1 else 'was'} not called in the first epoch, so that "
                "nothing is dropped after it; choose modules that are called, by `after=`"
            )

    def _waits(self, pl_module: Any, hold: _Hold) -> bool:
        """Whether a lazy module is still to get its shape, and with it another class."""
        names = [
            f"{name}.{lazy}" if name else lazy
            for name, module in modules_after(pl_module, self.after)
            for lazy in shapeless(module)
        ]
        if names and not hold.waits:
            rank_zero_warn(
                f"DropoutInjector: nothing is dropped until a batch has given {some(names, 2)} of "
                f"{type(pl_module).__name__} a shape; run one through the module before `fit` to have it "
                "from the first step"
            )
        hold.waits = bool(names)
        return hold.waits

    @override
    def _let_go(self) -> None:
        hold, self._hold = self._hold, None
        for _, module in reversed(hold.chosen if hold is not None else []):
            release(module, RATE_AFTER, self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hold": None}  # a copy is not attached to anything

    def __repr__(self) -> str:
        return f"DropoutInjector({self.rate!r}, after={self.after!r}, kind={self.kind!r})"
