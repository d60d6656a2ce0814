"""See what regularization does to a model while it trains."""

from __future__ import annotations

import warnings
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_reg.apply import Term
from lightning_reg.callbacks.regularizer import _PenaltyCallback, term_of
from lightning_reg.dropout import DropoutReport, DropoutSite, find_sites
from lightning_reg.hosts.both_namespaces import BothCallback
from lightning_reg.hosts.log_names import numbered
from lightning_reg.hosts.trainer import logs_this_step, scaler_of
from lightning_reg.look.layers import (
    Acting,
    LayerState,
    Rate,
    dropout_rates,
    gradient_ratios,
    layer_states,
    rates_at,
)
from lightning_reg.look.summary import regularization_table, require_rich
from lightning_reg.modules import RegularizedModule
from lightning_reg.select.parameters import Select
from lightning_reg.tensors.evaluated import evaluated
from lightning_reg.tensors.shards import is_sharded

__all__ = ["RegularizationMonitor"]


@final
class RegularizationMonitor(BothCallback):
    """Log what regularization does, layer by layer, and print one table when the run ends.

    On the steps that the Trainer logs it sends to every logger ``sparsity/<layer>``, ``norm/<layer>``,
    ``sparsity``, ``dropout/<layer>`` and, for each penalty at work, ``gradient_ratio/<penalty>``: the norm of
    the penalty's gradient over that of the loss's, on the weights that it penalizes. A ratio far above 1 says
    that the penalty rules; far below, that it hardly matters. On other steps it only notes dropout rates.

    Under a schedule-free optimizer, sparsity and norms are those of the average that evaluation uses.

    Below the table it prints the report of each dropout callback: what is steered and the share that was
    dropped, what no forward has reached, and what is not steered and why.

    Args:
        select: which parameters are watched.
        table: print the table at the end.

    Attributes:
        history: what was logged, one dict a step with its ``"step"``;
            :func:`lightning_reg.look.plot.sparsity` draws it.

    >>> RegularizationMonitor(select="encoder.*").history
    []
    """

    def __init__(self, select: Select = "weights", table: bool = True) -> None:
        super().__init__()
        self.select = select
        self.table = table
        self.history: list[dict[str, float]] = []
        self.before: list[LayerState] = []
        self._ratios: dict[str, float] = {}
        self._sites: list[DropoutSite] = []
        self._rates: list[Rate] = []
        self._logged_at = -1
        self._failed: set[int] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(select={self.select!r}, table={self.table})"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the state that the run begins with."""
        if self.table:
            require_rich()
        self.history, self._ratios, self._logged_at, self._failed = [], {}, -1, set()
        self.before = layer_states(pl_module, self.select)
        self._sites, self._rates = find_sites(pl_module), []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the rates of training: validation puts back those that the layers were built with."""
        if self._sites and _takes_part(trainer, pl_module):
            self._rates = rates_at(self._sites)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Log, on the steps that the Trainer logs."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if not logs_this_step(trainer) or not _takes_part(trainer, pl_module):
            return
        scaled = scaler_of(trainer) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        if not scaled:  # a fused optimizer unscales in its step
            acting = self._acting(trainer, pl_module)
            self._ratios |= gradient_ratios(optimizer, acting, trainer.global_step)
        if self._logged_at == step:  # another optimizer of the same batch
            return
        self._logged_at = step
        metrics: dict[str, float] = {}
        with evaluated(trainer.optimizers):
            states = layer_states(pl_module, self.select)
        for state in states:
            metrics[f"sparsity/{state.name}"] = state.sparsity
            metrics[f"norm/{state.name}"] = state.norm
        entries = sum(state.entries for state in states)
        metrics["sparsity"] = sum(state.entries * state.sparsity for state in states) / max(entries, 1)
        self._sites = find_sites(pl_module)
        metrics |= {f"dropout/{one.name}": one.rate for one in rates_at(self._sites)}
        metrics |= {f"gradient_ratio/{name}": ratio for name, ratio in self._ratios.items()}
        self.history.append({"step": float(step), **metrics})
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if id(logger) in self._failed:
                continue
            try:
                logger.log_metrics(metrics, step=step)
            except OSError as error:  # a full disk is no reason to lose the run
                self._failed.add(id(logger))
                _warn(f"log to {type(logger).__name__} any more: {error}; history goes on")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if not self.table or not _takes_part(trainer, pl_module):
            return
        from rich.console import Console

        table = self.as_table(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        try:
            Console().print(table)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if (report := getattr(callback, "report", None)) and isinstance(report, DropoutReport):
                    Console().print(f"{callback!r}\n{report}", markup=False, highlight=False)
        except OSError as error:
            _warn(f"print its table: {error}; as_table() returns it")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        self._sites = []

    def as_table(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return the ``rich`` table of what was regularized, how strongly, and what came of it.

        Where the strategy shards the model, every process must ask for it.
        """
        with evaluated(trainer.optimizers):
            states = layer_states(pl_module, self.select)
        return regularization_table(
            self.before,
            states,
            self._acting(trainer, pl_module),
            self._ratios,
            self._rates or dropout_rates(pl_module),
            trainer.global_step,
        )

    def _acting(self, trainer: Trainer, module: LightningModule) -> list[Acting]:
        """The penalties of the module and of callbacks, and which the gradients hold at this hook."""
        found: list[tuple[Term, str, bool]] = []
        if isinstance(module, RegularizedModule):
            for engine in module._engines():
                if not engine.penalty.is_constraint:
                    # callbacks are called before the module, whose gradients come later
                    found.append((engine.term, engine.apply, engine.apply == "loss"))
        before_me = True
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            before_me = before_me and callback is not self
            if isinstance(callback, _PenaltyCallback) and not callback.penalty.is_constraint:
                apply = callback.apply
                in_gradients = apply == "loss" or (apply == "gradient" and before_me)
                found.append((term_of(callback, trainer, module), apply, in_gradients))
        names = numbered(term.penalty.log_name for term, _, _ in found)
        return [Acting(name, *one) for name, one in zip(names, found, strict=True)]


def _takes_part(trainer: Trainer, module: LightningModule) -> bool:
    """Whether this process looks at the weights: the first, and all where they are sharded among them."""
    return trainer.is_global_zero or any(is_sharded(parameter) for parameter in module.parameters())


def _warn(what: str) -> None:
    warnings.warn(f"RegularizationMonitor cannot {what}", stacklevel=3)
