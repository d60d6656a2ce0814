r"""The strength at which a model has nothing left: where every path begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_reg.apply import Term, check_stored
from lightning_reg.penalties import Penalty
from lightning_reg.select.parameters import named_parameters
from lightning_reg.tune._loss import Data, Loss, batches_of, clone, loss_of, mean_gradient_, mean_hessian
from lightning_reg.tune.newton import LARGEST, definite
from lightning_reg.tune.stationarity import zero_strength

__all__ = ["is_linear", "lambda_max", "lambda_max_by_layer"]


def lambda_max(
    module: nn.Module,
    penalty: Penalty,
    data: Data,
    *,
    loss: Loss | None = None,
    convex: bool | None = None,
) -> float:
    r"""Return the smallest strength that zeroes every selected weight or group.

    **Convex models** (a linear or logistic regression: one ``nn.Linear`` holds all the parameters): exact.
    The selected weights are set to zero, the others (the intercept) are fitted, and the answer is the
    smallest λ for which :math:`0 = \operatorname{prox}_{\lambda\Omega}(-\nabla f(0))`: for L1
    :math:`\max_j|\nabla_j f|`, for the group lasso :math:`\max_g\|\nabla_g f\|_2/\sqrt{|g|}`.

    **Deep models**: the largest of :func:`lambda_max_by_layer`, a bound for each layer with the others as
    they are now. A layer that is at zero stays there at any larger strength; whether training reaches zero
    depends on its path, and weights trained for longer may withstand more. Data loss only, in eval mode.

    Args:
        module: it is copied, and stays as it is.
        penalty: which function, on what; its strength is ignored.
        data: a data set or batches.
        loss: ``(module, batch) -> loss``, a mean over the batch; the module's ``training_step`` where None.
        convex: whether the loss is convex in the trainable parameters; found out where None.

    Raises:
        ValueError: the selection matches nothing, or a weight that a layer computes from others, or no
            strength makes zeros.

    >>> from torch.utils.data import TensorDataset
    >>> from lightning_reg import L1
    >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [7.0]])
    >>> half_square = lambda module, batch: 0.5 * (module(batch[0]) - batch[1]).square().mean()
    >>> round(lambda_max(nn.Linear(1, 1), L1(1.0), TensorDataset(x, y), loss=half_square), 4)
    3.0

    References:
        Friedman, Hastie and Tibshirani, *Regularization Paths for Generalized Linear Models via Coordinate
        Descent*, Journal of Statistical Software 33(1), 2010, § 2.5.
    """
    work = clone(module)
    if not (is_linear(work) if convex is None else convex):
        return max(lambda_max_by_layer(module, penalty, data, loss=loss).values())
    term, batches, loss = _stored(penalty, work), batches_of(data), loss_of(work, loss)
    chosen = [s.parameter for s in term.selected if s.parameter.requires_grad]
    with torch.no_grad():
        for weight in chosen:
            weight.zero_()
    mean_gradient_(work, batches, loss)
    steepest = max((float(_gradient(weight).abs().max()) for weight in chosen if weight.numel()), default=0.0)
    _fit_others(work, chosen, batches, loss)
    mean_gradient_(work, batches, loss)
    gradients = [_gradient(weight) for weight in chosen]
    rounding = max(10 * torch.finfo(gradients[0].dtype).eps, 1e-12) * steepest if gradients else 0.0
    if all(bool((gradient.abs() <= rounding).all()) for gradient in gradients):
        return 0.0  # an intercept alone fits them, as targets that are all the same
    return zero_strength(term, chosen, gradients)


def lambda_max_by_layer(
    module: nn.Module, penalty: Penalty, data: Data, *, loss: Loss | None = None
) -> dict[str, float]:
    """Return, for each selected tensor, the strength from which zero is stationary for it.

    One tensor at a time is set to zero and the others stay as they are, so the answer is about this moment of
    training: mostly the start. Where all are zero at once a deep network has no gradient at all, and every
    strength would do.

    Args:
        module: it is copied, and stays as it is.
        penalty: which function, on what; its strength is ignored.
        data: a data set or batches; gone through once a tensor.
        loss: ``(module, batch) -> loss``; the module's ``training_step`` where None.
    """
    work = clone(module)
    term, batches, loss = _stored(penalty, work), batches_of(data), loss_of(work, loss)
    found = {}
    for selected in term.selected:
        weight = selected.parameter
        if not weight.requires_grad:
            continue
        before = weight.detach().clone()
        with torch.no_grad():
            weight.zero_()
        mean_gradient_(work, batches, loss)
        found[selected.name] = zero_strength(term, [weight], [_gradient(weight)])
        with torch.no_grad():
            weight.copy_(before)
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether one ``nn.Linear`` holds all that is trained."""
    trained = [s for s in named_parameters(module) if s.parameter.requires_grad]
    owners = {id(s.module): s.module for s in trained}
    if any(s.derived is not None and not s.derived.masked for s in trained):
        return False
    return len(owners) == 1 and all(isinstance(owner, nn.Linear) for owner in owners.values())


def _stored(penalty: Penalty, module: nn.Module) -> Term:
    term = Term(penalty, module, in_place=True)
    check_stored(term)
    return term


def _gradient(weight: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.detach().clone()


def _fit_others(module: nn.Module, chosen: list[nn.Parameter], batches: Any, loss: Loss) -> None:
    kept = {id(weight) for weight in chosen}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in kept]
    if not others:
        return
    optimizer = torch.optim.LBFGS(
        others, max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )
    optimizer.step(lambda: mean_gradient_(module, batches, loss))  # type: ignore[no-untyped-call]
    if sum(parameter.numel() for parameter in others) <= LARGEST:
        _polish(module, others, batches, loss)


def _polish(module: nn.Module, others: list[nn.Parameter], batches: Any, loss: Loss) -> None:
    """Take Newton steps while slopes shrink: they are exact to rounding where the loss is flat to it."""
    length = float("inf")
    before = [parameter.detach().clone() for parameter in others]
    for _ in range(4):
        mean_gradient_(module, batches, loss)
        slope = torch.cat([_gradient(parameter).flatten() for parameter in others]).double().cpu()
        now = float(slope.norm())
        if not now < length:
            break
        length, before = now, [parameter.detach().clone() for parameter in others]
        hessian = definite(mean_hessian(module, batches, loss, others), others[0].dtype)
        if hessian is None:
            break
        step = torch.linalg.solve(hessian, slope)
        with torch.no_grad():
            for parameter, part in zip(others, step.split([p.numel() for p in others]), strict=True):
                parameter.sub_(part.view_as(parameter).to(parameter))
    with torch.no_grad():
        for parameter, value in zip(others, before, strict=True):
            parameter.copy_(value)
