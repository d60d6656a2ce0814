"""Regularization for PyTorch Lightning: penalties, exact sparsity and dropout schedules for any module.

The public names stand in ``__init__.pyi``, and nowhere else. Each is loaded when it is first asked for, so
that importing the package costs nothing: Lightning does so for every Trainer, through the entry points that
:mod:`lightning_reg.cli.entry_point` serves. The core (penalties, selections, schedules, :func:`attach`) needs
torch alone; :class:`RegularizedModule` and the callbacks of :mod:`lightning_reg.callbacks` need Lightning.
"""

from typing import Any

from lightning_reg._lazy import lazy

_get, __dir__ = lazy(
    __name__,
    elsewhere=("lightning_reg.callbacks", "lightning_reg.tune"),
    unstarred=("plot", "PenaltyTrainerCallback"),  # the second needs transformers
)


def __getattr__(name: str) -> Any:
    return _version() if name == "__version__" else _get(name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lightning-reg")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"
