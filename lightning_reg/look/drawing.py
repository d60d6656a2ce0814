"""How figures look: an ink and a palette that read on white and on black, axes and legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "INK", "legend", "style"]

#: Contrast 4.5 on white and 4.6 on black: AA for text on either.
INK = "#767676"
COLOURS = ("#2a85d0", "#e07b1a", "#2a9d5c", "#d04a6a", "#8f6fd6", "#a8812c", "#1f9e9e", "#c65bb5")


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Give axes their title and labels, in the ink that reads on white and on black."""
    axes.patch.set_alpha(0.0)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(colors=INK, which="both", labelsize=9)
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def legend(axes: Axes, entries: int) -> None:
    """Add a legend, beside the axes where it has many entries."""
    outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if entries > 3 else {}
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, **outside)
