"""Where a path keeps its finished points, so that one that was stopped goes on from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["PathDirectory"]


@dataclass(frozen=True)
class PathDirectory:
    """A folder with a file for each point, or nowhere.

    Args:
        folder: it is made if need be; None keeps nothing.
        what: is kept there, for the error.
    """

    folder: Path | None
    what: str = "path"

    def claim(self, about: dict[str, Any]) -> None:
        """Write down what the folder is for.

        Raises:
            ValueError: it holds another one.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{self.what}.json"
        if not file.exists():
            _write(file, lambda part: part.write_text(json.dumps(about, indent=1)))
            return
        there = json.loads(file.read_text())
        if odd := [name for name in about if not _same(there.get(name), about[name])]:
            raise ValueError(
                f"{self.folder} holds another {self.what}: {', '.join(odd)} differ; give another directory, "
                "or the same arguments"
            )

    def load(self, chain: str, index: int) -> dict[str, Any] | None:
        """Return a point that is there."""
        if self.folder is None or not (file := self._file(chain, index)).exists():
            return None
        point: dict[str, Any] = torch.load(file, weights_only=True)
        return point

    def save(self, chain: str, index: int, point: dict[str, Any]) -> None:
        """Keep a finished point."""
        if self.folder is not None:
            _write(self._file(chain, index), lambda part: torch.save(point, part))

    def _file(self, chain: str, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{chain}-{index:04d}.pt"


def _same(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of computed strengths, in which the order of a sum can be seen."""
    if isinstance(one, list) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4)
    return bool(one == other)


def _write(file: Path, write: Callable[[Path], object]) -> None:
    """Write to a neighbour and rename, so that a file is either whole or not there."""
    part = file.with_suffix(".part")
    write(part)
    part.replace(file)
