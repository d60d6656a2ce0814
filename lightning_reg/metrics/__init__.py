"""What regularization did: metrics of weights and of generalization, as functions and as torchmetrics.

The functions need torch alone; the classes load torchmetrics. The names stand in ``__init__.pyi``, and each
is loaded when it is first asked for.
"""

from lightning_reg._lazy import lazy

__getattr__, __dir__ = lazy(__name__)
