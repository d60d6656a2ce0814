"""What the dropout callbacks share: watching the run's own steps, logging, and letting go."""

from __future__ import annotations

import functools
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_reg.dropout.evaluating import AlwaysOn
from lightning_reg.dropout.report import some
from lightning_reg.dropout.steering import SteeredRate
from lightning_reg.dropout.watch import Watch
from lightning_reg.hosts.both_namespaces import BothCallback
from lightning_reg.hosts.trainer import logs_this_step, show_number

__all__ = ["DropoutCallback", "look_at_validation", "unwatch_steps", "watch_steps"]


class DropoutCallback(BothCallback):
    """Private base: logging, plain rates in checkpoints, and everything put back, also at an exception."""

    name: str

    def _let_go(self) -> None:
        """Put everything back; a second call does nothing."""
        raise NotImplementedError

    @override
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # pickles of modules and configurations hold the built rates by themselves; a rate that is itself a
        # hyper-parameter becomes a plain number, so that the checkpoint loads with weights_only=True
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint:
                checkpoint[key] = _built(checkpoint[key])

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._let_go()

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._let_go()

    def _log(self, trainer: Any, number: float) -> None:
        name = f"dropout/{self.name}"
        show_number(trainer, name, number)
        if trainer.loggers and logs_this_step(trainer):
            for logger in trainer.loggers:
                logger.log_metrics({name: number}, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def watch_steps(trainer: Any, watch: Watch) -> None:
    """Watch the training step that comes, through the strategy: the module itself is left as it is."""
    strategy = trainer.strategy
    if getattr(strategy.__dict__.get("training_step"), "watch", None) is watch or not watch.next_step():
        return
    step = strategy.training_step

    @functools.wraps(step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        unwatch_steps(trainer)
        with watch.step():
            return step(*args, **kwargs)

    watched.watch = watch  # type: ignore[attr-defined]
    strategy.training_step = watched


def look_at_validation(trainer: Any, pl_module: Any) -> None:
    """Warn, after the first validation batch, about modules that drop in it."""
    strategy = trainer.strategy
    if hasattr(strategy.__dict__.get("validation_step"), "watch"):
        return
    step = strategy.validation_step

    @functools.wraps(step)
    def looked_at(*args: Any, **kwargs: Any) -> Any:
        unwatch_steps(trainer)
        with AlwaysOn(pl_module) as look:
            output = step(*args, **kwargs)
        if look.found:
            which = [f"{name}, by {function}" for name, function in look.found.items()]
            rank_zero_warn(
                f"dropout is on in validation, too, whose results are random: {some(which)}; hand the "
                "function `rate if self.training else 0.0`, or pass rate_in_eval=0, or 'scheduled' to keep it"
            )
        return output

    looked_at.watch = None  # type: ignore[attr-defined]
    strategy.validation_step = looked_at


def unwatch_steps(trainer: Any) -> None:
    """Undo :func:`watch_steps` and :func:`look_at_validation`."""
    for name in ("training_step", "validation_step"):
        if hasattr(trainer.strategy.__dict__.get(name), "watch"):
            delattr(trainer.strategy, name)


def _built(value: Any) -> Any:
    """The same hyper-parameters with built rates, containers copied only where one is inside."""
    if isinstance(value, SteeredRate):
        return value.built
    if type(value) in (list, tuple, set):
        items = [_built(item) for item in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    if isinstance(value, dict):
        changed = {key: new for key, item in value.items() if (new := _built(item)) is not item}
        if changed:
            value = value.copy()
            value.update(changed)
    return value
