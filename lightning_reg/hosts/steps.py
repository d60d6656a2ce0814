"""Whose steps a schedule counts: those of the optimizer that moves a module."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_reg.hosts.trainer import run_length

__all__ = ["OptimizerSteps", "length_by_progress"]


class OptimizerSteps:
    """The steps of each optimizer of a run under way.

    Under automatic optimization there is one optimizer and Lightning's ``global_step`` counts it. Under
    manual optimization each optimizer is counted. Nobody knows how often it will step, so a run's length in
    its steps is what its steps so far come to at the end: a schedule over the run ends when the run ends.

    Args:
        trainer: the Trainer, its optimizers set up.
        before: the steps in a checkpoint that the run resumes from.
    """

    def __init__(self, trainer: Any, before: list[int] | None = None) -> None:
        self._trainer = trainer
        self._manual = not trainer.lightning_module.automatic_optimization
        optimizers = list(trainer.optimizers)
        length = run_length(trainer)
        #: the run's length in steps of one optimizer, or None where it has no known end
        self.total = length // max(1, len(optimizers)) if length is not None and self._manual else length
        several = self._manual and len(optimizers) > 1
        self._counts = list(before or [0] * len(optimizers)) if several else None
        self._handles = []
        self._owned: list[set[int]] = []
        if several:
            for i, optimizer in enumerate(optimizers):
                self._handles.append(optimizer.register_step_post_hook(self._count(i)))
                self._owned.append({id(p) for group in optimizer.param_groups for p in group["params"]})

    def clock_of(self, root: nn.Module, module: nn.Module) -> int | None:
        """Return the index of the optimizer that moves ``module`` or what is around it, or None for all."""
        around = [m for m in root.modules() if any(inner is module for inner in m.modules())]
        for owner in reversed(around):  # inner ones come after those around them
            mine = {id(p) for p in owner.parameters()}
            moved_by = [i for i, owned in enumerate(self._owned) if owned & mine]
            if moved_by:
                return moved_by[0] if len(moved_by) == 1 else None
        return None

    def now(self, clock: int | None) -> tuple[int, int | None]:
        """Return the steps of an optimizer so far, and the length of the run in them."""
        step = self._trainer.global_step
        if not self._manual:
            return step, self.total
        if self._counts is not None:
            step = self._counts[clock] if clock is not None else max(self._counts)
        if self.total is None:
            return step, None
        return step, length_by_progress(self._trainer, step, self.total)

    def counts(self) -> list[int] | None:
        """The steps of each optimizer, where Lightning does not count them apart."""
        return self._counts

    def close(self) -> None:
        """Count no more."""
        for handle in self._handles:
            handle.remove()

    def _count(self, index: int) -> Any:
        def count(*args: Any) -> None:
            assert self._counts is not None
            self._counts[index] += 1

        return count


def length_by_progress(trainer: Any, step: int, total: int) -> int:
    """Return the length of a run in steps of which ``step`` are done: what these come to at its end.

    Args:
        trainer: under manual optimization, where nobody knows how many steps a batch takes.
        step: steps done.
        total: a guess, for as long as there is nothing to go by.
    """
    done = _progress(trainer) or 1.0 / total  # several steps of the first batch are no more than one
    return max(step, round(step / done)) if step else total


def _progress(trainer: Any) -> float:
    """The share of the run that is done, by batches or, where that ends it first, by steps."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.total
    shares = [trainer.global_step / trainer.max_steps] if trainer.max_steps > 0 else []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and batches != float("inf"):
        shares.append(progress.completed / (batches * trainer.max_epochs))
    return min(1.0, max(shares, default=0.0))
