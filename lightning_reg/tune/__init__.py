"""Choosing the strength: its largest sensible value, the path below it, and a short search.

Type checkers and the lazy loader read the names in ``__init__.pyi``.
"""

from lightning_reg._lazy import lazy, load

__getattr__, __dir__ = lazy(__name__)
load(__name__)
