"""What Lightning calls for every Trainer: the callbacks that ``lightning-reg run`` asked for, else none.

Lightning loads this module, in every process that makes a Trainer, through the entry-point groups
``lightning.pytorch.callbacks_factory`` and ``pytorch_lightning.callbacks_factory``. It imports nothing until
there is something to attach.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["VARIABLE", "callbacks", "nothing_attached"]

#: The environment variable that carries what to attach, to child processes too.
VARIABLE = "LIGHTNING_REG_RUN"


def callbacks() -> list[Any]:
    """Return new callbacks for one Trainer.

    >>> callbacks()
    []
    """
    plan = os.environ.get(VARIABLE)
    if plan is None:
        return []
    from lightning_reg.cli.attached import attached
    from lightning_reg.cli.plan import Plan

    return attached(Plan.from_json(plan))


@contextmanager
def nothing_attached() -> Iterator[None]:
    """Leave Trainers alone that are made here: those of a search, whose callbacks are its own."""
    plan = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if plan is not None:
            os.environ[VARIABLE] = plan
