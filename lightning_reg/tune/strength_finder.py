"""A short search before training: the strength of a penalty, or the rate of dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, ClassVar, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_reg.hosts.both_namespaces import BothCallback
from lightning_reg.tune.finder import check_rates, check_strengths, find_dropout, find_strength
from lightning_reg.tune.sweep import Sweep

__all__ = ["DropoutFinder", "StrengthFinder"]

#: How the run's penalty callback acts, and so the copies.
_HOW = ("apply", "metric", "dual_averaging")


class _Finder(BothCallback):
    """Trains copies of the module before the fit starts, and leaves the run as it is."""

    #: Arguments of the search that the run gives.
    given: ClassVar[frozenset[str]] = frozenset({"module", "data", "validation"})

    def __init__(
        self, update: bool, options: dict[str, Any], search: Callable[..., Sweep], check: Callable[..., None]
    ) -> None:
        super().__init__()
        name, takes = type(self).__name__, signature(search).parameters
        if not isinstance(update, bool):
            raise TypeError(
                f"{name}(update={update!r}) is neither True nor False; what it searches for is in the run"
            )
        if not isinstance(options, Mapping):
            raise TypeError(f"{name}: options={options!r} is no dict; give such as {{'epochs': 30}}")
        if unknown := sorted(set(options) - set(takes)):
            raise TypeError(f"{name}: options have {unknown[0]!r}, which {search.__name__} lacks")
        if twice := sorted(set(options) & self.given):
            raise TypeError(f"{name}: options have {twice[0]!r}, which the run gives; leave it out")
        check(**{key: options.get(key, takes[key].default) for key in signature(check).parameters})
        self.update = update
        self.options = options
        self.sweep: Sweep | None = None

    @property
    def suggestion(self) -> float | None:
        """What the sweep suggests, or None before it."""
        return None if self.sweep is None else self.sweep.suggestion()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Search, once, before anything of the run exists."""
        if stage != "fit" or self.sweep is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.world_size > 1:
            raise ValueError(
                f"{type(self).__name__} searches in one process, and this run has {trainer.world_size}; call "
                "find_strength or find_dropout before it"
            )
        train = _loader(trainer.fit_loop._data_source)
        validation = _loader(trainer.fit_loop.epoch_loop.val_loop._data_source)
        if validation is None:
            raise ValueError(
                f"{type(self).__name__} tells strengths apart by the validation loss; give the Trainer "
                "validation data"
            )
        shown = trainer.progress_bar_callback is not None
        epochs = trainer.max_epochs or 0
        whole = {"epochs": min(epochs, 60)} if epochs > 0 else {}
        how = {"trainer": {"accelerator": _accelerator(trainer)}, "progress": shown}
        options = how | whole | self.options
        self.search(trainer, pl_module, train, validation, options)
        rank_zero_info(f"{type(self).__name__}: {self._choice()}{'; in use' if self.update else ''}")

    def _choice(self) -> str:
        return "" if self.sweep is None else self.sweep.choice()

    def search(
        self, trainer: Trainer, module: LightningModule, train: Any, validation: Any, options: dict[str, Any]
    ) -> None:
        """Sweep, and use what was found if asked to."""
        raise NotImplementedError


@final
class StrengthFinder(_Finder):
    """Find a strength for the run's penalty callback before training, as ``LearningRateFinder`` does a rate.

    Copies of the module are trained for a short while, as :func:`~lightning_reg.tune.find_strength` does; the
    module, its optimizers, the loops and the random generators are those of a run without it.

    Args:
        update: give the suggestion to the penalty callback.
        options: of :func:`~lightning_reg.tune.find_strength`, such as ``{"points": 12, "epochs": 30}``; the
            copies train for the epochs of the run, or 60 if it has more, unless you say otherwise.

    Attributes:
        sweep: what was seen, with ``suggestion()``, ``plot()`` and ``to_csv()``.

    Raises:
        TypeError: an option that the search lacks, or that the run gives.
        ValueError: options that make no sweep; at fit start, no penalty callback or more than one, or no
            validation data.

    >>> StrengthFinder(update=False, options={"points": 10}).suggestion is None
    True
    """

    given = _Finder.given | {"penalty", *_HOW}

    def __init__(self, update: bool = True, options: dict[str, Any] | None = None) -> None:
        super().__init__(update, {} if options is None else options, find_strength, check_strengths)

    def search(
        self, trainer: Trainer, module: LightningModule, train: Any, validation: Any, options: dict[str, Any]
    ) -> None:
        """Sweep the strength of the one penalty callback."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        targets = [c for c in callbacks if hasattr(c, "penalty") and hasattr(c, "apply")]
        if len(targets) != 1:
            raise ValueError(
                f"StrengthFinder searches for one penalty callback's strength, and there are {len(targets)}; "
                "call find_strength for each instead"
            )
        (target,) = targets
        how = {name: getattr(target, name) for name in _HOW}
        self.sweep = find_strength(module, target.penalty, train, validation, **how, **options)
        if self.update:
            target.penalty = replace(target.penalty, strength=self.sweep.suggestion())


@final
class DropoutFinder(_Finder):
    """Find one rate for all of the module's dropout before training.

    Args:
        update: set the suggestion on every dropout site.
        options: of :func:`~lightning_reg.tune.find_dropout`, such as ``{"points": 9, "epochs": 30}``; the
            copies train for the epochs of the run, or 60 if it has more, unless you say otherwise.

    Attributes:
        sweep: what was seen, with ``suggestion()``, ``plot()`` and ``to_csv()``.

    Raises:
        TypeError: an option that the search lacks, or that the run gives.
        ValueError: options that make no sweep; at fit start, the module has no dropout site, or there are no
            validation data.

    >>> DropoutFinder(options={"highest": 0.6}).suggestion is None
    True
    """

    def __init__(self, update: bool = True, options: dict[str, Any] | None = None) -> None:
        super().__init__(update, {} if options is None else options, find_dropout, check_rates)

    def search(
        self, trainer: Trainer, module: LightningModule, train: Any, validation: Any, options: dict[str, Any]
    ) -> None:
        """Sweep the rate of every site at once."""
        self.sweep = find_dropout(module, train, validation, **options)
        if self.update:
            from lightning_reg.dropout import find_sites

            for site in find_sites(module):
                site.set(self.sweep.suggestion())


def _loader(source: Any) -> Any:
    if source is None or not source.is_defined():
        return None
    if source.is_module():
        return source.dataloader()

    return source.instance


def _accelerator(trainer: Trainer) -> str:
    return {"cuda": "gpu"}.get(trainer.strategy.root_device.type, trainer.strategy.root_device.type)
