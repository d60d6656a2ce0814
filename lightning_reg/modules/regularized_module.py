"""A LightningModule that carries its penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from lightning_reg.apply import Apply, DualAveraging, check_apply, check_dual_averaging, check_word
from lightning_reg.hosts.engine import Engine
from lightning_reg.hosts.host import Host
from lightning_reg.hosts.lightning_host import LightningHost, length_for, started
from lightning_reg.hosts.log_names import numbered
from lightning_reg.hosts.trainer import run_length, values_this_step
from lightning_reg.modules._own_host import NoRun, OwnHost, check_init, counted_once, warn_of_bare_loss
from lightning_reg.penalties import ForwardPenalty
from lightning_reg.penalties.forward import Recorder
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.schedules.base import check_schedule

__all__ = ["RegularizedModule"]


class RegularizedModule(LightningModule):
    """A LightningModule that carries penalties and constraints.

    Write :meth:`task_loss`, and the inherited :meth:`training_step` adds the terms; or write your own
    ``training_step`` that ends in ``return self.regularize(loss)``. Under manual optimization, call
    ``self.manual_backward(self.regularize(loss))``.

    The task loss is logged as ``loss/task``, which compares with a validation loss, the sum with the terms as
    ``loss/regularized``, and each term as ``penalty/<name>``, on the steps that the Trainer logs.

    Args:
        penalties: one penalty, or several, on weights or on the forward pass; their terms add up. Those on
            the forward pass act while a Trainer fits. Constraints may be among them.
        apply: how penalties of weights act, as in :class:`~lightning_reg.callbacks.PenaltyCallback`.
            ``"loss"`` adds their terms to the loss; for the others a module that overrides
            ``on_fit_start``, ``on_before_optimizer_step`` or ``on_fit_end`` calls ``super()`` there.
        dual_averaging: of ``"proximal"``, as in :class:`~lightning_reg.callbacks.PenaltyCallback`.

    Raises:
        TypeError: one of ``penalties`` is neither a penalty nor a constraint.
        ValueError: a penalty that cannot act so.

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

    penalties: tuple[Regularizer, ...]

    def __init__(
        self,
        penalties: Regularizer | ForwardPenalty | Sequence[Regularizer | ForwardPenalty] = (),
        apply: Apply = "loss",
        dual_averaging: DualAveraging = True,
    ) -> None:
        super().__init__()
        several = isinstance(penalties, Sequence) and not isinstance(penalties, str)
        given: tuple[Any, ...] = tuple(penalties) if several else (penalties,)  # type: ignore[arg-type]
        for penalty in given:
            if not isinstance(penalty, (Regularizer, ForwardPenalty)):
                raise TypeError(f"penalties={penalty!r} is not a penalty; give some such as [L1(1e-4)]")
        self.penalties = tuple(penalty for penalty in given if isinstance(penalty, Regularizer))
        self.forward_penalties = tuple(penalty for penalty in given if isinstance(penalty, ForwardPenalty))
        self.apply_penalties: Apply = apply  # `apply` is a method of every nn.Module
        self.dual_averaging: DualAveraging = dual_averaging
        check_word(apply)
        check_dual_averaging(dual_averaging, apply)
        for penalty in self.penalties:  # those on the forward pass have one way to act
            check_apply(penalty, self._way(penalty))
        self._recorders: list[Recorder] = []
        self._asked = False  # whether a loss has been regularized
        self._bound: tuple[Any, list[Engine]] | None = None
        self._restored: list[dict[str, Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_bound": None, "_recorders": []}  # a copy has other parameters

    # --- hooks ---------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Say before training starts what is wrong with a selection, a schedule or an optimizer."""
        check_init(self)
        self._release()
        self._asked = False
        if self.trainer.ckpt_path is None:  # a checkpoint that was loaded for another purpose
            self._restored = None
        self._engines()
        for penalty in self.forward_penalties:
            check_schedule(penalty.schedule, self._run_length(penalty))
            self._recorders.append(Recorder(penalty, self, self._is_fitting))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Act on the gradients or the weights, where penalties do not act through the loss."""
        if self._is_fitting():
            for engine in self._engines():
                engine.announce(optimizer)

    def on_train_epoch_end(self) -> None:
        """Say so if weights were trained by steps that Lightning does not see, or without the terms."""
        self._check_loss()
        for engine in self._engines():
            if isinstance(engine.host, LightningHost):
                engine.host.warn_of_unheld(engine)

    def on_fit_end(self) -> None:
        """Leave no hook on the forward pass and the optimizers."""
        self._check_loss()
        self._detach()

    def _detach(self) -> None:
        for recorder in self._recorders:
            recorder.remove()
        self._recorders = []
        for engine in self._bound[1] if self._bound is not None else ():
            engine.detach()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget calls made outside a training step."""
        for recorder in self._recorders:
            recorder.clear()

    # --- the loss ------------------------------------------------------------------------------------

    def task_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch without any penalty; write this, or your own ``training_step``."""
        raise NotImplementedError(
            f"{type(self).__name__} has neither task_loss(batch, batch_idx) nor a training_step; write one"
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the task loss with the penalty terms added."""
        return self.regularize(self.task_loss(batch, batch_idx))

    def penalty(self) -> Tensor:
        """Return the sum of all terms at this moment of the run, a differentiable scalar."""
        self._asked = True
        total = torch.zeros((), device=self.device)
        for engine in self._engines():
            if not engine.penalty.is_constraint:
                total = total + engine.loss_term()
        return counted_once(self, total)

    def regularize(self, loss: Any) -> Any:
        """Return ``loss`` with the penalty terms added, and log them apart; outside training, ``loss``.

        Args:
            loss: the task loss, a scalar, or what else a ``training_step`` may return: a dictionary with a
                ``"loss"``, or None, which skips the batch.

        Raises:
            TypeError: it is none of these.
        """
        if loss is None:
            return None
        if isinstance(loss, Mapping) and "loss" in loss:
            return {**loss, "loss": self.regularize(loss["loss"])}
        if not isinstance(loss, Tensor):
            raise TypeError(f"the task loss of {type(self).__name__} is {loss!r}; return a scalar tensor")
        return self._add_terms(loss)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _add_terms(self, loss: Tensor) -> Tensor:  # compiled, it would be guarded by the step and made anew
        trainer = self._trainer
        if trainer is not None and not trainer.training:
            return loss
        self._asked = True
        total = loss
        task, values, logs = loss.detach(), [], trainer is not None and values_this_step(trainer)
        for engine in self._engines():
            penalty = engine.penalty
            if penalty.is_constraint or (engine.apply != "loss" and not logs):
                continue
            value = engine.loss_term(loss) if engine.apply == "loss" else engine.value()
            total = total + value if engine.apply == "loss" else total
            strength = engine.strength() if callable(penalty.strength) else None
            values.append((penalty.log_name, strength, value))
        for term in self._forward_values():
            total = total + term[2]
            values.append(term)
        if logs:
            self.log("loss/task", task)
            if self.apply_penalties == "loss":
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
        return [engine.state_dict() for engine in self._bound[1]] if self._bound is not None else []

    def _load_penalty_states(self, states: list[dict[str, Tensor]]) -> None:
        assert self._bound is not None
        for engine, state in zip(self._bound[1], states, strict=False):
            if state:
                engine.load_state_dict(state)
        self._restored = None

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

    def _check_loss(self) -> None:
        if not self._asked and self._trainer is not None and self._trainer.global_step > 0:
            warn_of_bare_loss(self, [p for p in self.penalties if self._way(p) == "loss"])
        self._asked = True

    def _is_fitting(self) -> bool:
        # false after an exception, when no hook of ours is called any more
        return self._trainer is not None and self._trainer.training

    def _release(self) -> None:
        """Leave no trace of an earlier fit."""
        self._detach()
        self._bound = None

    def _way(self, penalty: Regularizer) -> Apply:
        return "proximal" if penalty.is_constraint else self.apply_penalties

    def _engines(self) -> list[Engine]:
        """What is at work on this module; bound anew where its parameters or its Trainer changed."""
        trainer = self._trainer
        key = (trainer, self.penalties, self.apply_penalties, self.dual_averaging)
        restored = self._restored is not None  # by strategies that shard, after the fit's start
        if (
            self._bound is None
            or self._bound[0] != key
            or restored
            or any(engine.term.is_stale() for engine in self._bound[1])
        ):
            states = self._penalty_states()
            for engine in self._bound[1] if self._bound is not None else ():
                engine.detach()
            host = NoRun() if trainer is None else OwnHost(trainer, self)
            self._bound = key, [self._engine(i, p, host) for i, p in enumerate(self.penalties)]
            self._load_penalty_states(states)
        return self._bound[1]

    def _engine(self, place: int, penalty: Regularizer, host: Host) -> Engine:
        trainer, apply = self._trainer, self._way(penalty)
        total_steps = length_for(penalty, trainer) if trainer is not None else None
        label = f"{place} {penalty.log_name}"
        engine = Engine(
            penalty,
            apply,
            "optimizer",
            self,
            host,
            total_steps=total_steps,
            dual_averaging=self.dual_averaging,
            label=label,
        )
        running = trainer is not None and (trainer.state.fn, trainer.state.status) == ("fit", "running")
        if isinstance(host, LightningHost) and running and apply != "loss":
            host.check_host(penalty, apply, logs=False)
            started(engine, host)
        return engine
