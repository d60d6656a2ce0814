"""LightningModules that regularize themselves."""

from lightning_reg.modules.regularized_module import RegularizedModule

__all__ = ["RegularizedModule"]
