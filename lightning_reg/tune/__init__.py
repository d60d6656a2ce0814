"""Choosing the strength: its largest sensible value, the path below it, and a short search."""

from lightning_reg.tune.finder import find_dropout, find_strength
from lightning_reg.tune.frame import PathFrame
from lightning_reg.tune.lambda_max import lambda_max, lambda_max_by_layer
from lightning_reg.tune.path import regularization_path
from lightning_reg.tune.study import ray_map, strength_study
from lightning_reg.tune.sweep import Sweep

__all__ = [
    "PathFrame",
    "Sweep",
    "find_dropout",
    "find_strength",
    "lambda_max",
    "lambda_max_by_layer",
    "ray_map",
    "regularization_path",
    "strength_study",
]
