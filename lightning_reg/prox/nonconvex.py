r"""Proximal operators of non-convex penalties on single weights, in closed form.

Each returns the minimiser of :math:`\tfrac1{2\eta}(x - w)^2 + \Omega(x)` for every weight. MCP and SCAD
need a step below their own bend for that; a longer one counts as the longest allowed. Its exact prox would be
a hard threshold that grows with the step, and cut off large weights for having converged: where a gradient
vanishes, so does Adam's second moment, and the step grows without bound. All take real weights and return new
tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_reg.prox.elementwise import soft_threshold

__all__ = [
    "firm_threshold",
    "half_threshold",
    "hard_threshold",
    "log_jump",
    "log_threshold",
    "mcp",
    "mcp_slope",
    "scad",
    "scad_slope",
    "scad_threshold",
]

#: Up to where ½ has a root worth taking: τ/2|w|^{3/2} at |w| = 3/2 τ^{2/3}.
HALF_MOST = (2.0 / 3.0) ** 1.5 / 2.0
#: The root as a series in ρ, and Newton's steps from there, which reach rounding in float64.
HALF_START = (1.0, -0.5, -0.375, -0.5, -105.0 / 128.0)
HALF_STEPS = 3
#: Newton's steps to where the log-sum prox jumps: over 30 decades of a/ε², 6 reached rounding in float64.
LOG_STEPS = 6
#: As large as a/ε² is taken: its root has a square in float32.
LOG_MOST = 1e30


def hard_threshold(weight: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Return the weight where :math:`|w| > \tau`, and 0 elsewhere.

    The prox of :math:`\lambda\,\#\{i : w_i \ne 0\}` with :math:`\tau=\sqrt{2\eta\lambda}`.

    >>> hard_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
    tensor([-3., 0., 2.])
    """
    return torch.where(weight.abs() <= threshold, torch.zeros_like(weight), weight)


def half_threshold(weight: Tensor, amount: float | Tensor) -> Tensor:
    r"""Prox of :math:`\tau\sum_i|w_i|^{1/2}`.

    0 up to :math:`\tfrac32\tau^{2/3}`, and beyond it
    :math:`\tfrac23 w\bigl(1 + \cos(\tfrac{2\pi}3 - \tfrac23\arccos(\tfrac\tau4(|w|/3)^{-3/2}))\bigr)`.

    Args:
        weight: any shape.
        amount: :math:`\tau \ge 0`, one number or one for each weight.

    References:
        Xu, Chang, Xu and Zhang, *L1/2 Regularization: A Thresholding Representation Theory and a Fast
        Solver*, IEEE TNNLS 23(7), 2012.

    >>> half_threshold(torch.tensor([1.0, 2.0]), 1.0)
    tensor([0.0000, 1.6054])
    """
    amount = torch.as_tensor(amount, dtype=weight.dtype, device=weight.device)
    modulus = weight.abs()
    # x = wz², where z is the largest root of z³ − z + ρ, with ρ = τ/2|w|^{3/2}
    rho = (0.5 * amount) / modulus / modulus.sqrt()
    goes = (rho >= HALF_MOST) | (modulus == 0)  # NaN stays NaN
    rho.clamp_(max=HALF_MOST)
    z = torch.full_like(rho, HALF_START[-1])
    for coefficient in HALF_START[-2::-1]:
        z.mul_(rho).add_(coefficient)
    for _ in range(HALF_STEPS):
        square = z.square()
        z.mul_(square).mul_(2.0).sub_(rho).div_(square.mul_(3.0).sub_(1.0))
    return z.square_().mul_(weight).masked_fill_(goes, 0.0)


def log_threshold(weight: Tensor, amount: float | Tensor, eps: float) -> Tensor:
    r"""Prox of :math:`a\sum_i\log(1 + |w_i|/\epsilon)`.

    The larger root of :math:`x - w + a/(x + \epsilon) = 0` where :math:`|w|` is above :func:`log_jump`, and 0
    elsewhere.

    Args:
        weight: any shape.
        amount: :math:`a \ge 0`, one number or one for each weight.
        eps: :math:`\epsilon > 0`.

    >>> log_threshold(torch.tensor([0.5, 2.0, 9.0]), 1.0, 1.0)
    tensor([0.0000, 1.6180, 8.8990])
    """
    amount = torch.as_tensor(amount, dtype=weight.dtype, device=weight.device)
    end = weight.abs() + eps
    # what the root lacks of |w|, in a form that is 0 where a is
    less = 2.0 * amount / (end + (end.square() - 4.0 * amount).sqrt())
    return torch.where(weight.abs() <= log_jump(amount, eps), 0.0, weight - torch.sgn(weight) * less)


def log_jump(amount: Tensor, eps: float) -> Tensor:
    r"""Return the largest modulus that :func:`log_threshold` sets to 0, for each :math:`a`.

    :math:`a/\epsilon` up to :math:`a = \epsilon^2`. Beyond it the prox jumps, to an x with
    :math:`\tfrac12x^2 = a(\log(1 + x/\epsilon) - x/(x + \epsilon))`, from :math:`x + a/(x + \epsilon)`.

    >>> log_jump(torch.tensor([0.5, 4.0]), 1.0)
    tensor([0.5000, 3.1870])
    """
    ratio = (amount / eps**2).clamp(max=LOG_MOST)
    if ratio.is_cpu and not bool((ratio > 1.0).any()):  # elsewhere the look would wait for the device
        return ratio * eps
    above = ratio.clamp(min=1.0)
    # Newton's method on ½x² - r(log(1 + x) - x/(1 + x)), convex above its least point √r - 1, from above
    least, most = above.sqrt() - 1.0, torch.minimum(above - 1.0, (2.0 * above * above.log()).sqrt())
    x = most
    for _ in range(LOG_STEPS):
        rest = 1.0 + x
        height = 0.5 * x.square() - above * (x.log1p() - x / rest)
        slope = x * (1.0 - above / rest.square())
        # where rounding has the better of it, both bounds are next to the root
        x = torch.where(slope > 0, x - height / slope, x).clamp_(min=least, max=most)
    return torch.where(ratio <= 1.0, ratio, x + above / (1.0 + x)) * eps


def mcp(modulus: Tensor, strength: float | Tensor, gamma: float) -> Tensor:
    r"""MCP of each modulus: :math:`\lambda t - t^2/2\gamma` up to :math:`\gamma\lambda`."""
    bend = modulus.clamp(max=gamma * strength)
    return bend * (strength - bend / (2.0 * gamma))


def mcp_slope(modulus: Tensor, strength: float | Tensor, gamma: float) -> Tensor:
    r"""Derivative of MCP: :math:`(\lambda - t/\gamma)_+`."""
    return (strength - modulus / gamma).clamp_(min=0.0)


def firm_threshold(weight: Tensor, step: float | Tensor, strength: float, gamma: float) -> Tensor:
    r"""Prox of MCP: :math:`S(w, \eta\lambda)/(1 - \eta/\gamma)` to :math:`\gamma\lambda`, then :math:`w`.

    A step longer than :math:`\gamma` counts as :math:`\gamma`: the hard threshold at :math:`\gamma\lambda`.

    >>> firm_threshold(torch.tensor([0.5, 2.0, 9.0]), 1.0, 1.0, 3.0)
    tensor([0.0000, 1.5000, 9.0000])
    """
    step = torch.as_tensor(step, dtype=weight.dtype, device=weight.device).clamp(max=gamma)
    rest = 1.0 - step / gamma
    shrunk = soft_threshold(weight, step * strength) / torch.where(rest > 0, rest, 1.0)
    return torch.where(weight.abs() <= gamma * strength, shrunk, weight)


def scad(modulus: Tensor, strength: float | Tensor, a: float) -> Tensor:
    r"""Smoothly clipped absolute deviation of each modulus; see :class:`~lightning_reg.SCAD`."""
    # min(t, aλ) · λ, less a parabola for the slope that falls from λ to 0 over (a − 1)λ
    reach = modulus.clamp(max=a * strength)
    bend = (reach - strength).clamp(min=0.0)
    return reach * strength - bend.square() / (2.0 * (a - 1.0))


def scad_slope(modulus: Tensor, strength: float | Tensor, a: float) -> Tensor:
    r"""Derivative of SCAD: :math:`\min(\lambda, (a\lambda - t)_+/(a - 1))`."""
    slope = ((a * strength - modulus) / (a - 1.0)).clamp_(min=0.0)
    return slope.minimum(torch.as_tensor(strength, dtype=slope.dtype, device=slope.device))


def scad_threshold(weight: Tensor, step: float | Tensor, strength: float, a: float) -> Tensor:
    r"""Prox of SCAD: a soft threshold, then ever less, then none.

    :math:`S(w, \eta\lambda)` up to :math:`(1+\eta)\lambda`; then
    :math:`((a-1)w - \operatorname{sign}(w)a\eta\lambda)/(a-1-\eta)` up to :math:`a\lambda`; then :math:`w`. A
    step longer than :math:`a - 1` counts as :math:`a - 1`.

    >>> scad_threshold(torch.tensor([0.5, 1.5, 3.0, 9.0]), 1.0, 1.0, 3.7)
    tensor([0.0000, 0.5000, 2.5882, 9.0000])
    """
    step = torch.as_tensor(step, dtype=weight.dtype, device=weight.device).clamp(max=a - 1.0)
    modulus = weight.abs()
    rest = a - 1.0 - step
    middle = (a - 1.0) * weight - a * step * strength * torch.sgn(weight)
    bent = torch.where(
        modulus <= (1.0 + step) * strength,
        soft_threshold(weight, step * strength),
        middle / torch.where(rest > 0, rest, 1.0),
    )
    return torch.where(modulus <= a * strength, bent, weight)
