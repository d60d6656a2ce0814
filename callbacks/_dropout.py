"""What the dropout callbacks share: the audit of the first batch, and taking hold of sites and letting go."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn
from typing_extensions import override

from lightning_reg.callbacks._base import BothCallback
from lightning_reg.dropout.audit import Audit, audit
from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.dropout.steering import SteeredRate, release

__all__ = ["DropoutCallback", "Hold", "compiled_modules"]


@dataclass(eq=False)
class Hold:
    """What a callback holds for the run: the audit, and what to put back."""

    total: int | None
    audit: Audit | None = None
    ready: bool = False
    applied: float | None = None
    modules: list[tuple[nn.Module, str]] = field(default_factory=list)
    elsewhere: list[tuple[DropoutSite, Any]] = field(default_factory=list)
    state: Any = None


class DropoutCallback(BothCallback):
    """Private base: the run's state, and everything put back at the end, or at an exception."""

    _hold: Hold | None = None
    _audits: bool = True
    name: str

    def _take(self, trainer: Any, pl_module: Any, hold: Hold) -> None:
        """Take hold of the module, before the first training step."""
        raise NotImplementedError

    def _apply(self, trainer: Any, pl_module: Any, hold: Hold) -> None:
        """Set the rates for the step that is about to run."""
        raise NotImplementedError

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        hold = self._hold
        if hold is None:
            return
        if not hold.ready:
            if self._audits:
                hold.audit = _shared_audit(trainer, pl_module, batch, batch_idx)
            self._take(trainer, pl_module, hold)
            hold.ready = True
        self._apply(trainer, pl_module, hold)

    @override
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # pickles of modules and configurations hold the built rates by themselves; a rate that is itself a
        # hyper-parameter becomes a plain float, so that the checkpoint loads with weights_only=True
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
        metrics = {f"dropout/{self.name}": number}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        if trainer._logger_connector.should_update_logs:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _let_go(self) -> None:
        hold, self._hold = self._hold, None
        if hold is None:
            return
        for module, attribute in reversed(hold.modules):
            release(module, attribute, self)
        for site, value in hold.elsewhere:
            site._write(value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_hold"}


def compiled_modules(pl_module: nn.Module) -> set[int]:
    """The identities of the modules that run inside ``torch.compile``."""
    inside: set[int] = set()
    for module in pl_module.modules():
        wrapped = module._modules.get("_orig_mod")
        if wrapped is not None:
            inside.update(id(m) for m in wrapped.modules())
        if module.__dict__.get("_compiled_call_impl") is not None:
            inside.update(id(m) for m in module.modules())
    if getattr(pl_module, "_compiler_ctx", None) is not None:
        inside.update(id(m) for m in pl_module.modules())
    return inside


def _shared_audit(trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> Audit:
    """One audit a run for all dropout callbacks; the first to be asked makes it."""
    for callback in trainer.callbacks:
        if isinstance(callback, DropoutCallback) and callback._hold is not None and callback._hold.audit:
            return callback._hold.audit
    try:
        return audit(pl_module, lambda: _training_step(trainer, pl_module, _copied(batch), batch_idx))
    except Exception as error:
        raise RuntimeError(
            f"looking for dropout, {type(pl_module).__name__}.training_step raised {type(error).__name__} on "
            "the first batch, on which it is run once more beforehand; mend it, or pass audit=False to "
            "DropoutScheduler to steer every known site unseen"
        ) from error


def _training_step(trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
    """Run ``training_step`` as the strategy would, without logging and without optimizer steps."""
    step = pl_module.training_step
    parameters = [
        p
        for p in inspect.signature(step).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    kwargs = (batch, batch_idx) if len(parameters) > 1 else (batch,)
    with _idle(pl_module), torch.enable_grad(), trainer.precision_plugin.train_step_context():
        if (
            type(trainer.strategy).__name__ == "FSDPStrategy"
        ):  # parameters are gathered by the wrapper's forward
            trainer.strategy.training_step(*kwargs)
        else:
            step(*kwargs)


def _copied(batch: Any) -> Any:
    """A batch that the audited step may take apart or write to: ``batch.pop("labels")``."""
    try:
        return copy.deepcopy(batch)
    except Exception:  # a tensor with a history, or a type that does not copy
        return apply_to_collection(batch, torch.Tensor, torch.clone)


@contextmanager
def _idle(pl_module: Any) -> Iterator[None]:
    """Make logging and manual optimization do nothing; undone with the module's other attributes."""
    optimizers = [] if pl_module.automatic_optimization else pl_module.optimizers()
    idle: Any = [_Idle(o) for o in optimizers] if isinstance(optimizers, list) else _Idle(optimizers)
    replaced: dict[str, Any] = {"log": _nothing, "log_dict": _nothing}
    if not pl_module.automatic_optimization:
        for name in ("manual_backward", "toggle_optimizer", "untoggle_optimizer", "clip_gradients"):
            replaced[name] = _nothing
        replaced["optimizers"] = lambda *args, **kwargs: idle
        replaced["lr_schedulers"] = lambda *args, **kwargs: _Idle(None)
    before = {name: pl_module.__dict__[name] for name in replaced if name in pl_module.__dict__}
    pl_module.__dict__.update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del pl_module.__dict__[name]
        pl_module.__dict__.update(before)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


class _Idle:
    """An optimizer that reads as the real one and steps nowhere."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self._optimizer.param_groups

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        return closure() if closure is not None else None

    def toggle_model(self, *args: Any, **kwargs: Any) -> Any:
        return nullcontext()

    def __getattr__(self, name: str) -> Any:
        return _nothing

    def __iter__(self) -> Iterator[Any]:
        return iter([self, self])


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


def overlap(trainer: Any, me: DropoutCallback, sites: Sequence[DropoutSite]) -> None:
    """Refuse sites that another callback of this trainer has taken.

    Raises:
        ValueError: naming them.
    """
    mine = {site.key: site.name for site in sites}
    for other in trainer.callbacks:
        if other is me or not isinstance(other, DropoutCallback) or other._hold is None:
            continue
        taken = {(id(module), attribute) for module, attribute in other._hold.modules}
        taken |= {site.key for site, _ in other._hold.elsewhere}
        taken |= getattr(other._hold.state, "keys", set())
        shared = [name for key, name in mine.items() if key in taken]
        if shared:
            raise ValueError(
                f"{', '.join(shared[:4])}{' and more' if len(shared) > 4 else ''} would be steered by two "
                f"callbacks, {type(other).__name__} and {type(me).__name__}; give them disjoint `select`s"
            )
