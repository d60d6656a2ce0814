"""Dropout for a network that has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from lightning_reg.callbacks._dropout import DropoutCallback, Hold
from lightning_reg.dropout.inject import AFTER, InjectKind, check_outputs, modules_after
from lightning_reg.dropout.isolation import shapeless
from lightning_reg.dropout.steering import RATE_AFTER, Rates, steer
from lightning_reg.hosts.trainer import run_length
from lightning_reg.schedules.base import ScheduleLike, check_schedule, evaluate
from lightning_reg.select.modules import ModuleSelect

__all__ = ["DropoutInjector"]


@dataclass(eq=False)
class _State:
    rates: Rates
    chosen: list[tuple[str, Any]]
    keys: frozenset[tuple[int, str]] = frozenset()


class DropoutInjector(DropoutCallback):
    r"""Adds dropout after chosen modules for the run, and takes it away again.

    The output y of a chosen module becomes, in training, :math:`m \odot y / (1 - p)` with one draw
    :math:`m \sim \text{Bernoulli}(1 - p)` a value (``"element"``) or a channel (``"channel"``, for outputs of
    shape ``(N, C, ...)``); or, for residual blocks of the same input and output shape, stochastic depth
    (``"depth"``), :math:`x + m\,(y - x)/(1 - p)` with one draw a sample. The names in ``state_dict``, the
    parameters and copies and pickles of the module are unchanged. The first training batch is run once more
    beforehand, with its effects undone, to see what the modules return.

    Args:
        rate: a number in [0, 1], or a schedule of one.
        after: a glob over module names, a module class, a predicate ``(name, module) -> bool``, or a list.
        kind: ``"element"``, ``"channel"`` or ``"depth"``.
        name: the name in logs, ``dropout/<name>``.
        audit: False to take on trust that each module is called and returns one tensor of the right shape.
            The look moves on a Python iterator that the module holds, which cannot be wound back, and weights
            that the module itself changes, such as a teacher's moving average, stay changed.

    Raises:
        ValueError: a rate outside [0, 1]; at ``fit`` start, no module matches, or one returns tuples or, for
            ``"depth"``, changes the shape.

    >>> DropoutInjector(0.1, after="*.fc1")
    DropoutInjector(0.1, after='*.fc1', kind='element')

    References:
        Srivastava et al., JMLR 2014; Tompson et al., CVPR 2015 (channels); Huang et al., ECCV 2016 (depth).
    """

    def __init__(
        self,
        rate: ScheduleLike,
        after: ModuleSelect,
        kind: InjectKind = "element",
        *,
        name: str | None = None,
        audit: bool = True,
    ) -> None:
        if not callable(rate):
            evaluate(rate, 0, name="dropout rate", upper=1.0)
        if kind not in AFTER:
            raise ValueError(f"kind={kind!r} is not understood; use 'element', 'channel' or 'depth'")
        self.rate = rate
        self.after = after
        self.kind: InjectKind = kind
        self.name = name if name is not None else "injected"
        self._audits = audit
        self._hold = None

    @override
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._let_go()
        modules_after(pl_module, self.after)
        total = run_length(trainer)
        check_schedule(self.rate, total, name="dropout rate", upper=1.0)
        self._hold = Hold(total)

    @override
    def _shapeless(self, pl_module: Any) -> list[str]:
        # with its shape a lazy module gets another class, which would put an end to the dropout after it
        inside = (
            f"{name}.{lazy}"
            for name, module in modules_after(pl_module, self.after)
            for lazy in shapeless(module)
        )
        return super()._shapeless(pl_module) or list(inside)

    @override
    def _take(self, trainer: Any, pl_module: Any, hold: Hold) -> None:
        chosen = modules_after(pl_module, self.after)
        if hold.audit is not None:
            check_outputs(chosen, self.kind, hold.audit)
        device = next((p.device for p in pl_module.parameters()), pl_module.device)
        rates = Rates(device, 1)
        for _, module in chosen:
            steer(module, RATE_AFTER, self, after=AFTER[self.kind], rates=rates.rows[0])
            hold.modules.append((module, RATE_AFTER))
        hold.state = _State(rates, chosen)

    @override
    def _apply(self, trainer: Any, pl_module: Any, hold: Hold) -> None:
        rate = evaluate(self.rate, trainer.global_step, hold.total, name="dropout rate", upper=1.0)
        if rate != hold.applied:
            hold.state.rates.fill([rate])
            for _, module in hold.state.chosen:
                module.__dict__[RATE_AFTER] = rate
            hold.applied = rate
        self._log(trainer, rate)

    def __repr__(self) -> str:
        return f"DropoutInjector({self.rate!r}, after={self.after!r}, kind={self.kind!r})"
