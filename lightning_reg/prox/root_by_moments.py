r"""The root of :mod:`lightning_reg.prox.group` without a search, where the thresholds are short.

With means E weighted by :math:`v^2`, :math:`\tau_j = \mu\eta_j`, :math:`m = E[\tau]`,
:math:`\delta = \tau - m` and :math:`a = \theta + m`, Taylor's theorem has

.. math::
    \phi(\theta) = \frac{\|v\|^2}{a^2}\Bigl(1 + \frac{3\,E[\delta^2]}{a^2} - R\Bigr).

No δ is below -m, so that for :math:`m \le a/4` there is :math:`|R| \le 17\,E|\delta|^3/a^3`, and
:math:`E|\delta|^3 \le E[\tau^3] + m\,E[\delta^2]`. If that is below rounding,
:math:`\theta = \|v\| - m + 1.5\,E[\delta^2]/\|v\|`.
"""

from __future__ import annotations

import math

__all__ = ["root_by_moments"]


def root_by_moments(squares: float, firsts: float, seconds: float, thirds: float, eps: float) -> float:
    r"""Return θ, or -1 where it needs a search, or where numbers in ``eps`` may have lost a moment.

    Args:
        squares: :math:`\sum v^2`.
        firsts: :math:`\sum v^2\tau`.
        seconds: :math:`\sum v^2\tau^2`.
        thirds: :math:`\sum v^2\tau^3`.
        eps: the spacing of numbers at 1.

    >>> round(root_by_moments(25.0, 25 * 1e-4, 25 * 1e-8, 25 * 1e-12, 1.2e-7), 5)  # all steps alike: 5 - 1e-4
    4.9999
    """
    if not 1e-20 < squares < 1e30:
        return -1.0
    norm, mean = math.sqrt(squares), firsts / squares
    spread = max(seconds / squares - mean * mean, 0.0)
    left_out = 17.0 * (thirds / squares + mean * spread)
    if mean <= 0.25 * norm and left_out <= 0.25 * eps * norm * squares:
        return norm - mean + 1.5 * spread / norm
    return -1.0
