"""The callbacks: hook wiring, and no formula."""

from lightning_reg.callbacks.adaptive_dropout import AdaptiveDropout
from lightning_reg.callbacks.dropout_injector import DropoutInjector
from lightning_reg.callbacks.dropout_scheduler import DropoutScheduler

__all__ = ["AdaptiveDropout", "DropoutInjector", "DropoutScheduler"]
