"""Lightning callbacks: what to attach to a Trainer.

Hook wiring only; every formula lives in :mod:`lightning_reg.penalties` and :mod:`lightning_reg.dropout`.
The names stand in ``__init__.pyi``. Those of this folder are loaded at once, because a config may name them
without a path; the finders, which live in :mod:`lightning_reg.tune`, when they are first asked for.
"""

from lightning_reg._lazy import lazy, load

__getattr__, __dir__ = lazy(__name__)
load(__name__)
