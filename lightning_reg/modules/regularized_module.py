"""A LightningModule that carries its penalties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_reg.apply import Term, check_apply
from lightning_reg.hosts.log_names import numbered
from lightning_reg.hosts.trainer import run_length, values_this_step
from lightning_reg.penalties import ForwardPenalty, Penalty
from lightning_reg.penalties.forward import Recorder
from lightning_reg.schedules.base import check_schedule

__all__ = ["RegularizedModule"]


class RegularizedModule(LightningModule):
    """A LightningModule whose training loss carries penalty terms.

    Write :meth:`task_loss`, and the inherited :meth:`training_step` adds the terms; or write your own
    ``training_step`` that ends in ``return self.regularize(loss)``. Under manual optimization, call
    ``self.manual_backward(self.regularize(loss))``.

    The task loss is logged as ``loss/task``, which compares with a validation loss, the sum with the terms as
    ``loss/regularized``, and each term as ``penalty/<name>``, on the steps that the Trainer logs.

    Args:
        penalties: one penalty, or several, on weights or on the forward pass; their terms add up. Those on
            the forward pass act while a Trainer fits.

    Raises:
        TypeError: one of ``penalties`` is not a penalty.

    >>> import torch
    >>> from lightning_reg import L1, L2, RegularizedModule
    >>> class Net(RegularizedModule):
    ...     def __init__(self):
    ...         super().__init__(penalties=[L1(1e-4), L2(1e-3)])
    ...         self.layer = torch.nn.Linear(10, 1)
    ...     def task_loss(self, batch, batch_idx):
    ...         x, y = batch
    ...         return torch.nn.functional.mse_loss(self.layer(x), y)
    ...     def configure_optimizers(self):
    ...         return torch.optim.SGD(self.parameters(), lr=0.01)
    >>> Net().penalty().shape
    torch.Size([])
    """

    penalties: tuple[Penalty, ...]

    def __init__(self, penalties: Penalty | ForwardPenalty | Sequence[Penalty | ForwardPenalty] = ()) -> None:
        super().__init__()
        given = (penalties,) if isinstance(penalties, (Penalty, ForwardPenalty)) else tuple(penalties)
        for penalty in given:
            if not isinstance(penalty, (Penalty, ForwardPenalty)):
                raise TypeError(f"penalties={penalty!r} is not a penalty; give some such as [L1(1e-4)]")
            if isinstance(penalty, Penalty):
                check_apply(penalty, "loss")
        self.penalties = tuple(penalty for penalty in given if isinstance(penalty, Penalty))
        self.forward_penalties = tuple(penalty for penalty in given if isinstance(penalty, ForwardPenalty))
        self._recorders: list[Recorder] = []
        self._bound: tuple[Any, list[Term]] | None = None
        self._restored: list[dict[str, Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_bound": None,
            "_recorders": [],
        }  # a copy has parameters of its own

    def on_fit_start(self) -> None:
        """Say before training starts what is wrong with a selection or a schedule."""
        self._bound = None
        if self.trainer.ckpt_path is None:  # a checkpoint that was loaded for another purpose
            self._restored = None
        self._terms()
        self._unwatch()
        for penalty in self.forward_penalties:
            check_schedule(penalty.schedule, self._run_length(penalty))
            self._recorders.append(Recorder(penalty, self, self._is_fitting))

    def on_fit_end(self) -> None:
        """Stop watching the forward pass."""
        self._unwatch()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget calls made outside a training step."""
        for recorder in self._recorders:
            recorder.clear()

    def task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch without any penalty; write this, or your own ``training_step``."""
        raise NotImplementedError(
            f"{type(self).__name__} has neither task_loss(batch, batch_idx) nor a training_step; write one"
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the task loss with the penalty terms added."""
        return self.regularize(self.task_loss(batch, batch_idx))

    def penalty(self) -> Tensor:
        """Return the sum of all terms at this moment of the run, a differentiable scalar."""
        total = torch.zeros((), device=self.device)
        for _, _, value in self._values():
            total = total + value
        return total

    def regularize(self, loss: Tensor) -> Tensor:
        """Return ``loss`` with the penalty terms added, and log them apart; outside training, ``loss``.

        Args:
            loss: the task loss, a scalar.
        """
        total: Tensor = self._add_terms(loss)
        return total

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _add_terms(self, loss: Tensor) -> Tensor:  # compiled, it would be guarded by the step and made anew
        trainer = self._trainer
        if trainer is not None and not trainer.training:
            return loss
        values = self._values() + self._forward_values()
        total = loss
        for _, _, value in values:
            total = total + value
        if trainer is not None and values_this_step(trainer):
            self.log("loss/task", loss.detach())
            self.log("loss/regularized", total.detach())
            self._log_terms(values)
        return total

    def _log_terms(self, values: list[tuple[str, float | None, Tensor]]) -> None:
        names = numbered(name for name, _, _ in values)
        for name, (_, strength, value) in zip(names, values, strict=True):
            self.log(f"penalty/{name}", value.detach())
            if strength is not None:
                self.log(f"penalty/{name}/strength", strength)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the penalties have learned of the module, if anything."""
        states = self._penalty_states()
        if any(states):
            checkpoint["lightning_reg/module"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up."""
        self._restored = checkpoint.get("lightning_reg/module")

    def _penalty_states(self) -> list[dict[str, Tensor]]:
        if self._restored is not None:
            return self._restored
        return [term.state_dict() for term in self._bound[1]] if self._bound is not None else []

    def _load_penalty_states(self, states: list[dict[str, Tensor]]) -> None:
        assert self._bound is not None
        for term, state in zip(self._bound[1], states, strict=False):
            if state:
                term.load_state_dict(state)
        self._restored = None

    def _values(self) -> list[tuple[str, float | None, Tensor]]:
        """Name, strength where it is scheduled, and value of each term."""
        step = self.global_step if self._trainer is not None else 0
        values: list[tuple[str, float | None, Tensor]] = []
        for term in self._terms():
            strength = term.strength(step)
            scheduled = strength if callable(term.penalty.strength) else None
            values.append((term.penalty.log_name, scheduled, term.value(strength)))
        return values

    def _forward_values(self) -> list[tuple[str, float | None, Tensor]]:
        values: list[tuple[str, float | None, Tensor]] = []
        for recorder in self._recorders:
            penalty, step = recorder.penalty, self.global_step
            total_steps = self._run_length(penalty)
            scheduled = penalty.schedule(step, total_steps) if callable(penalty.schedule) else None
            values.append((penalty.log_name, scheduled, recorder.value(step, total_steps)))
        return values

    def _run_length(self, penalty: ForwardPenalty) -> int | None:
        return run_length(self.trainer) if callable(penalty.schedule) else None

    def _is_fitting(self) -> bool:
        # false after an exception, when no hook of ours is called any more
        return self._trainer is not None and self._trainer.training

    def _unwatch(self) -> None:
        for recorder in self._recorders:
            recorder.remove()
        self._recorders = []

    def _terms(self) -> list[Term]:
        """The penalties bound to this module; bound anew where its parameters or its Trainer changed."""
        trainer = self._trainer
        key = (trainer, self.penalties)
        restored = self._restored is not None  # by strategies that shard, after the fit's start
        if (
            self._bound is None
            or self._bound[0] != key
            or restored
            or any(t.is_stale() for t in self._bound[1])
        ):
            scheduled = [penalty.strength for penalty in self.penalties if callable(penalty.strength)]
            total_steps = run_length(trainer) if trainer is not None and scheduled else None
            if self._bound is None:
                for strength in scheduled:
                    check_schedule(strength, total_steps)
            states = self._penalty_states()
            terms = [
                Term(penalty, self, total_steps, label=f"{i} {penalty.log_name}")
                for i, penalty in enumerate(self.penalties)
            ]
            self._bound = (key, terms)
            self._load_penalty_states(states)
        return self._bound[1]
