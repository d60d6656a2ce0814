"""What is asked of Lightning's strategies, which are known by name so that none is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Reach", "reach_of"]


@dataclass(frozen=True)
class Reach:
    """How far a run's strategy lets the engine reach.

    Attributes:
        strategy: its name.
        steps: whether the optimizers that step are the Trainer's; DeepSpeed steps one of its own, with
            copies of the parameters.
        whole: whether each process knows the weights as a whole; FSDP1 leaves it a flat part.
        shares: whether processes share out the module when its ``configure_model`` is called.
    """

    strategy: str
    steps: bool
    whole: bool
    shares: bool


def reach_of(trainer: Any) -> Reach:
    """Return what the strategy of ``trainer`` allows."""
    name = type(trainer.strategy).__name__
    # FSDP2 comes as the ModelParallelStrategy
    shares = "ModelParallel" in name
    return Reach(name, steps="DeepSpeed" not in name, whole="FSDP" not in name, shares=shares)
