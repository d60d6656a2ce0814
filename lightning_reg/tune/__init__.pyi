"""The public names of the tuning, each listed once: ``_lazy`` reads this file, as type checkers do."""

from lightning_reg.tune.compare import accuracy as accuracy
from lightning_reg.tune.compare import compare as compare
from lightning_reg.tune.comparison import Comparison as Comparison
from lightning_reg.tune.comparison import Contender as Contender
from lightning_reg.tune.finder import find_dropout as find_dropout
from lightning_reg.tune.finder import find_strength as find_strength
from lightning_reg.tune.frame import PathFrame as PathFrame
from lightning_reg.tune.kinds import Kind as Kind
from lightning_reg.tune.lambda_max import lambda_max as lambda_max
from lightning_reg.tune.lambda_max import lambda_max_by_layer as lambda_max_by_layer
from lightning_reg.tune.path import regularization_path as regularization_path
from lightning_reg.tune.stability import Stability as Stability
from lightning_reg.tune.stability import stability_selection as stability_selection
from lightning_reg.tune.study import ray_map as ray_map
from lightning_reg.tune.study import strength_study as strength_study
from lightning_reg.tune.sweep import Sweep as Sweep
