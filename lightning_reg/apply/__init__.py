"""How a penalty or a constraint acts on a training step, and no Lightning in sight."""

from lightning_reg.apply.check import check_apply, check_optimizer, check_stored, check_word, default_apply
from lightning_reg.apply.decoupled import decay_, decay_where_agreed_
from lightning_reg.apply.dual_averaging import (
    added_bytes,
    check_dual_averaging,
    forget_averages,
    make_averages_,
)
from lightning_reg.apply.gradient import add_gradient_
from lightning_reg.apply.loss import add_to_training_step, remove_from_training_step
from lightning_reg.apply.projection import look_before_, project_
from lightning_reg.apply.proximal import prox_
from lightning_reg.apply.term import Apply, DualAveraging, Metric, Term

__all__ = [
    "Apply",
    "DualAveraging",
    "Metric",
    "Term",
    "add_gradient_",
    "add_to_training_step",
    "added_bytes",
    "check_apply",
    "check_dual_averaging",
    "check_optimizer",
    "check_stored",
    "check_word",
    "decay_",
    "decay_where_agreed_",
    "default_apply",
    "forget_averages",
    "look_before_",
    "make_averages_",
    "project_",
    "prox_",
    "remove_from_training_step",
]
