"""What ``lightning-reg run`` asks every Trainer of a script for, and how a search leaves it out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["VARIABLE", "nothing_attached"]

#: The environment variable that carries what to attach, to child processes too.
VARIABLE = "LIGHTNING_REG_RUN"


@contextmanager
def nothing_attached() -> Iterator[None]:
    """Leave Trainers alone that are made here: those of a search, whose callbacks are its own."""
    plan = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if plan is not None:
            os.environ[VARIABLE] = plan
