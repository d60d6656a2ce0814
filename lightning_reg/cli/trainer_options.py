"""Arguments of the Trainer that ``lightning-reg run`` puts in place of the script's own.

This is the one place where the library changes Lightning's behaviour: for as long as the script runs, and
only where a Trainer option was given on the command line, the ``Trainer`` of each namespace is made with it.
``PL_TRAINER_*`` variables, which Lightning reads itself, do not reach arguments that a script writes out, nor
any of a LightningCLI, which writes out all. The run's report prints what was replaced.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning_reg.cli.errors import UsageError

__all__ = ["replaced", "trainer_options"]


@contextmanager
def trainer_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Make every Trainer with ``options``, whatever the script gives it."""
    with ExitStack() as stack:
        for trainer in _trainers() if options else ():
            stack.enter_context(_replacing(trainer, options))
        yield


def replaced(trainer: Any) -> dict[str, tuple[Any, Any]]:
    """Return the arguments that the script gave ``trainer`` and the ones it was made with instead."""
    return dict(getattr(trainer, "_replaced_options", {}))


@contextmanager
def _replacing(cls: type, options: Mapping[str, Any]) -> Iterator[None]:
    original = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        given.pop(next(iter(signature.parameters)))
        self._replaced_options = {
            name: (given.get(name, signature.parameters[name].default), value)
            for name, value in options.items()
            if given.get(name, signature.parameters[name].default) != value
        }
        original(self, **{**given, **options})
        _check_processes(self, options)

    cls.__init__ = init  # type: ignore[misc]
    try:
        yield
    finally:
        cls.__init__ = original  # type: ignore[misc]


def _check_processes(trainer: Any, options: Mapping[str, Any]) -> None:
    """Refuse a Trainer that would start the script again, without the options."""
    launcher = trainer.strategy.launcher
    environment = getattr(launcher, "cluster_environment", None)
    starts = environment is not None and not environment.creates_processes_externally
    if starts and launcher.num_processes > 1:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise UsageError(
            f"the script's Trainer starts {launcher.num_processes} processes by itself, which {names} would "
            f"not reach; give --devices {launcher.num_processes} as well",
        )


def _trainers() -> list[type]:
    from lightning.pytorch import Trainer

    trainers: list[type] = [Trainer]
    try:
        from pytorch_lightning import Trainer as OtherTrainer
    except ImportError:
        return trainers
    return [*trainers, OtherTrainer]
