"""A LightningCLI that says what is wrong with a config in one line."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_reg.cli.errors import UsageError, one_line

__all__ = ["OneLineCLI"]


class OneLineCLI(LightningCLI):
    """Raises :class:`UsageError` where LightningCLI would print its usage and exit."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser, or a subcommand's, that raises its errors."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; classes are imported, and nothing is made yet."""
        try:
            with warnings.catch_warnings():  # the command line is where these arguments come from
                warnings.filterwarnings("ignore", "LightningCLI's args parameter")
                super().parse_arguments(parser, args)
        except Exception as error:
            command = next(iter(args), "")
            known = self._subcommand_parsers.get(command)
            keys = [action.dest for action in known._actions] if known is not None else []
            raise UsageError(one_line(error, keys)) from error
