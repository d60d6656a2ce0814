"""What Lightning calls for every Trainer: the callbacks that ``lightning-reg run`` asked for, else none.

Lightning loads this module, in every process that makes a Trainer, through the entry-point groups
``lightning.pytorch.callbacks_factory`` and ``pytorch_lightning.callbacks_factory``. It imports nothing until
there is something to attach.
"""

from __future__ import annotations

import os
from typing import Any

from lightning_reg.hosts.requested import VARIABLE

__all__ = ["callbacks"]


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
