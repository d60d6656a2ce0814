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
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from typing_extensions import override

from lightning_reg.dropout.audit import Audit, audit
from lightning_reg.dropout.isolation import shapeless
from lightning_reg.dropout.sites import DropoutSite
from lightning_reg.dropout.steering import SteeredRate, release
from lightning_reg.hosts.both_namespaces import BothCallback

__all__ = ["DropoutCallback", "Hold", "compiled_modules"]


@dataclass(eq=False)
class Hold:
    """What a callback holds for the run: the audit, and what to put back."""

    total: int | None
    audit: Audit | None = None
    ready: bool = False
    waits: bool = False
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
            if self._waits(pl_module, hold):
                return
            if self._audits:
                hold.audit = _shared_audit(trainer, pl_module, batch, batch_idx)
                if hold.audit is None:
                    return
            self._take(trainer, pl_module, hold)
            hold.ready = True
        self._apply(trainer, pl_module, hold)

    def _shapeless(self, pl_module: Any) -> list[str]:
        """The lazy tensors whose shapes are to be waited for."""
        return shapeless(pl_module) if self._audits else []

    def _waits(self, pl_module: Any, hold: Hold) -> bool:
        names = self._shapeless(pl_module)
        if names and not hold.waits:
            rank_zero_warn(
                f"{type(self).__name__}: dropout is as built until a batch has given {names[0]} "
                f"{'and others ' if len(names) > 1 else ''}of {type(pl_module).__name__} a shape; run one "
                "through the module before `fit` to have it from the first step"
            )
        hold.waits = bool(names)
        return hold.waits

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


def _shared_audit(trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> Audit | None:
    """One audit a run for all dropout callbacks; the first to be asked makes it.

    None where the module skips the epoch, before anything is trained.
    """
    callbacks = [c for c in trainer.callbacks if isinstance(c, DropoutCallback)]
    for callback in callbacks:
        if callback._hold is not None and callback._hold.audit:
            return callback._hold.audit
    running, skips = "on_train_batch_start", False

    def trial() -> None:
        nonlocal running, skips
        fetched = _copied(batch)
        with _idle(trainer, pl_module):
            skips = pl_module.on_train_batch_start(fetched, batch_idx) == -1
            if not skips:
                running = "training_step"
                _training_step(trainer, pl_module, fetched, batch_idx)

    try:
        result = audit(pl_module, trial)
    except Exception as error:
        names = dict.fromkeys(type(c).__name__ for c in callbacks if c._audits)
        raise RuntimeError(
            f"looking for dropout, {type(pl_module).__name__}.{running} raised {type(error).__name__} on "
            "the first batch, on which it is run once more beforehand; mend it, or pass audit=False to "
            f"{' and '.join(names)} to do without looking"
        ) from error
    return None if skips else result


def _training_step(trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
    """Run ``training_step`` as the strategy would."""
    step = pl_module.training_step
    parameters = [
        p
        for p in inspect.signature(step).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    kwargs = (batch, batch_idx) if len(parameters) > 1 else (batch,)
    with torch.enable_grad(), trainer.precision_plugin.train_step_context():
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
def _idle(trainer: Any, pl_module: Any) -> Iterator[None]:
    """Make logging and manual optimization do nothing, and put back what is set in parameter groups."""
    groups = [(group, dict(group)) for o in trainer.optimizers for group in o.param_groups]
    replaced: dict[str, Any] = {"log": _nothing, "log_dict": _nothing}
    if not pl_module.automatic_optimization:
        for name in ("manual_backward", "toggle_optimizer", "untoggle_optimizer", "clip_gradients"):
            replaced[name] = _nothing
        optimizers, schedulers = _idled(pl_module.optimizers()), _idled(pl_module.lr_schedulers())
        replaced["optimizers"] = lambda *args, **kwargs: optimizers
        replaced["lr_schedulers"] = lambda *args, **kwargs: schedulers
    before = {name: pl_module.__dict__[name] for name in replaced if name in pl_module.__dict__}
    pl_module.__dict__.update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del pl_module.__dict__[name]
        pl_module.__dict__.update(before)
        for group, values in groups:
            group.clear()
            group.update(values)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _idled(real: Any) -> Any:
    return [_Idle(one) for one in real] if isinstance(real, list) else None if real is None else _Idle(real)


class _Idle:
    """An optimizer or a scheduler that reads as the real one and steps nowhere."""

    def __init__(self, real: Any) -> None:
        self._real = real

    @property
    def param_groups(self) -> Any:
        return self._real.param_groups

    def get_last_lr(self) -> Any:
        return self._real.get_last_lr()

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
