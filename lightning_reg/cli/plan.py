"""What one ``lightning-reg run`` asks for, as its processes hand it on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What to attach to every Trainer, and how.

    Attributes:
        callbacks: class paths and their ``init_args``, as in LightningCLI's ``trainer.callbacks``.
        options: arguments of the Trainer that replace the script's.
        dry_run: end at the start of the first fit.
        notes: a folder in which processes leave word of what happened; none where None.
    """

    callbacks: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    notes: str | None = None

    def to_json(self) -> str:
        """Write it for an environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        >>> plan = Plan([{"class_path": "L1PenaltyCallback", "init_args": {"strength": 1e-4}}], dry_run=True)
        >>> Plan.from_json(plan.to_json()) == plan
        True
        """
        return cls(**json.loads(text))

    def note(self, event: str) -> None:
        """Leave word that ``event`` happened."""
        if self.notes is not None:
            (Path(self.notes) / event).touch()

    def noted(self, event: str) -> bool:
        """Whether a process left word of ``event``."""
        return self.notes is not None and (Path(self.notes) / event).exists()
