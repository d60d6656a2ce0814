"""``lightning-reg fit``, ``validate``, ``test`` and ``predict``: a LightningCLI over what is here."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str]) -> None:
    """Run a LightningCLI.

    Models, data modules, penalties and callbacks are given by class path, in YAML or on the command line;
    those of this library by their name alone: ``--model LinearRegression --data SklearnDataModule``.

    Args:
        args: a subcommand and its options, ``["fit", "--config", "fit.yaml"]``.

    Raises:
        UsageError: an argument or the config cannot be used; nothing was started.
        ModuleNotFoundError: jsonargparse is not installed.
    """
    import jsonargparse  # noqa: F401 - for the error, which from Lightning's import is another
    from lightning.pytorch import LightningDataModule, LightningModule

    # importing them makes their names known to the parser
    import lightning_reg.callbacks
    import lightning_reg.data
    import lightning_reg.modules  # noqa: F401
    from lightning_reg.cli.lightning_cli import OneLineCLI

    OneLineCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        args=list(args),
    )
