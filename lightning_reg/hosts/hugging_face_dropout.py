"""Dropout schedules under the Hugging Face Trainer; imported by hand, since it imports transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from lightning_reg.dropout.plain import DropoutHandle, schedule_dropout
from lightning_reg.dropout.report import DropoutReport
from lightning_reg.dropout.selection import SelectSites, check_select_sites
from lightning_reg.schedules.base import ScheduleLike
from lightning_reg.schedules.dropout import ByDepth

if TYPE_CHECKING:
    TrainerCallback = object
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError(
            "DropoutTrainerCallback needs transformers; pip install 'transformers[torch]'"
        ) from error

__all__ = ["DropoutTrainerCallback"]


@final
class DropoutTrainerCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Steer the dropout of the model that a ``transformers.Trainer`` trains.

    What :func:`~lightning_reg.schedule_dropout` does, on the Trainer's clock: ``state.global_step`` of
    ``state.max_steps``, so that a resumed run needs no state. The rates are as built after training.

    Args:
        rate: a number in [0, 1], a schedule of one, or :class:`~lightning_reg.ByDepth` of either.
        select: which sites, as for :class:`~lightning_reg.callbacks.DropoutScheduler`.
        relative: multiply each site's built rate instead of replacing it.

    Raises:
        ValueError: when training begins, a rate outside [0, 1], or no site.

    >>> DropoutTrainerCallback(0.1)
    DropoutTrainerCallback(0.1, select='built', relative=False)
    """

    def __init__(
        self, rate: ScheduleLike | ByDepth, select: SelectSites = "built", relative: bool = False
    ) -> None:
        check_select_sites(select)
        self.rate = rate
        self.select = select
        self.relative = relative
        #: What became of the last run's sites.
        self.report: DropoutReport | None = None
        self._handle: DropoutHandle | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.rate!r}, select={self.select!r}, relative={self.relative})"

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Take hold of the model."""
        self.remove()
        self._handle = schedule_dropout(
            model, self.rate, total_steps=state.max_steps, select=self.select, relative=self.relative
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the rates of the step that begins."""
        assert self._handle is not None
        self._handle.step(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the rates back."""
        self.remove()

    def remove(self) -> None:
        """Put the rates back, also after a run that failed."""
        if self._handle is not None:
            self.report = self._handle.report()
            self._handle.remove()
        self._handle = None
