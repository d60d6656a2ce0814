"""Dropout rates that follow the gap between training and validation."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lightning_reg.callbacks.dropout_sites import InEval, SiteCallback
from lightning_reg.dropout.adaptive import GapControl, GapState
from lightning_reg.dropout.selection import SelectSites
from lightning_reg.dropout.settings import Compiled, RateInEval

__all__ = ["AdaptiveDropout"]


class AdaptiveDropout(SiteCallback):
    r"""Raises the rate while the model overfits, lowers it while it underfits.

    After each epoch with a validation run, with the gap :math:`g = m_\text{val} - m_\text{train}`: at rest
    while :math:`|g - g^*|` is within ``hysteresis``; beyond it, the rate takes a step up (:math:`g > g^*`) or
    down at each look until the gap has crossed :math:`g^*`. The rate stays within ``[low, high]``. Rate and
    direction are in the checkpoint. For a metric that grows as the model gets better, such as an accuracy,
    pass it as ``train`` and ``val`` in exchange.

    Args:
        target: :math:`g^*`, the gap wanted, in the metric's unit.
        train: name of the logged training metric.
        val: name of the logged validation metric.
        start: the first rate of every new run.
        low: lowest rate.
        high: highest rate.
        step: change of the rate a look.
        hysteresis: how far the gap may stray before anything happens.
        select: which sites, as for :class:`DropoutScheduler`.
        name: the group's name in logs; the selection by default.
        in_eval: see :class:`DropoutScheduler`.
        rate_in_eval: see :class:`DropoutScheduler`.
        compile_levels: see :class:`DropoutScheduler`.
        compiled: see :class:`DropoutScheduler`.

    Raises:
        ValueError: bounds, step or hysteresis out of order, or, while training, a metric that is not logged.

    >>> AdaptiveDropout(0.1, train="train_loss", val="val_loss", start=0.1).rate
    0.1
    """

    def __init__(
        self,
        target: float,
        *,
        train: str = "train_loss",
        val: str = "val_loss",
        start: float = 0.1,
        low: float = 0.0,
        high: float = 0.5,
        step: float = 0.02,
        hysteresis: float = 0.0,
        select: SelectSites = "built",
        name: str | None = None,
        in_eval: InEval = "warn",
        rate_in_eval: RateInEval = "built",
        compile_levels: int = 4,
        compiled: Compiled = "levels",
    ) -> None:
        self.control = GapControl(target, hysteresis, step, low, high)
        if not low <= start <= high:
            raise ValueError(f"start={start!r} is outside [{low}, {high}]; give a rate between low and high")
        self.train = train
        self.val = val
        self.start = float(start)
        self._gap = GapState(self.start)
        self._validated = False
        self._ended: Any = None
        self._set_up(select, False, name, in_eval, rate_in_eval, compile_levels, compiled)

    @property
    def rate(self) -> float:
        """The current rate."""
        return self._gap.rate

    @property
    @override
    def state_key(self) -> str:
        return f"AdaptiveDropout{{'name': {self.name!r}, 'train': {self.train!r}, 'val': {self.val!r}}}"

    @override
    def state_dict(self) -> dict[str, Any]:
        self._look()  # a checkpoint at an epoch's end is written after the module has logged
        return {"rate": self._gap.rate, "moving": self._gap.moving, "validated": self._validated}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._gap = GapState(float(state_dict["rate"]), int(state_dict["moving"]))
        self._validated = bool(state_dict["validated"])

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self._gap, self._validated = GapState(self.start), False

    @override
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking and self._steps is not None:
            self._validated = True

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._ended = trainer if self._validated else None

    @override
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._look()

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._look()
        super().on_train_end(trainer, pl_module)

    def _look(self) -> None:
        """Look at the gap of the epoch that has ended, once the module has logged at its end."""
        trainer, self._ended = self._ended, None
        if trainer is None:
            return
        self._validated = False
        metrics = trainer.callback_metrics
        missing = [name for name in (self.train, self.val) if name not in metrics]
        if missing:
            raise ValueError(
                f"AdaptiveDropout looks at {' and '.join(missing)}, which is not logged; log it, or name one "
                f"of {', '.join(sorted(metrics)) or 'none'} by `train=` and `val=`"
            )
        gap = float(metrics[self.val]) - float(metrics[self.train])
        self._gap = self.control.next(self._gap, gap)

    @override
    def _let_go(self) -> None:
        self._ended = None
        super()._let_go()

    @override
    def _range(self, total: int | None) -> tuple[float, float]:
        return self.control.low, self.control.high

    @override
    def _number(self, step: int, total: int | None) -> float:
        return self._gap.rate

    def __repr__(self) -> str:
        return f"AdaptiveDropout({self.control.target!r}, train={self.train!r}, val={self.val!r})"
