"""Numbers at which a level, a band or a block's edge decides."""

import pytest
import torch

from lightning_reg.dropout import masks
from lightning_reg.dropout.adaptive import GapControl, GapState
from lightning_reg.dropout.settings import nearest_level


@pytest.mark.parametrize(
    ("number", "level"), [(0.14, 0.0), (0.16, 0.3), (0.29, 0.3), (0.46, 0.6), (0.9, 0.9)]
)
def test_the_nearest_level_is_the_nearest_from_both_sides(number, level):
    assert nearest_level(number, 0.0, 0.9, 4) == pytest.approx(level)
    assert nearest_level(0.1 + number, 0.1, 1.0, 4) == pytest.approx(0.1 + level)


def test_one_level_is_the_middle_of_the_range():
    assert nearest_level(0.1, 0.2, 0.6, 1) == pytest.approx(0.4)
    assert nearest_level(0.1, 0.3, 0.3, 4) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("gap", "moving", "after"),
    [(0.375, 0, (0.5, 0)), (0.125, 0, (0.5, 0)), (0.5, 0, (0.625, 1)), (0.0, 0, (0.375, -1)),
     (0.25, 1, (0.5, 0)), (0.3125, 1, (0.625, 1)), (0.1875, 1, (0.5, 0)), (float("nan"), 1, (0.5, 1))],
)  # fmt: skip
def test_the_edge_of_the_band_is_rest_and_the_target_ends_a_movement(gap, moving, after):
    control = GapControl(target=0.25, band=0.125, step=0.125, low=0.0, high=1.0)  # exact in binary
    state = control.next(GapState(0.5, moving), gap)
    assert (state.rate, state.moving) == after


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_block_of_any_width_keeps_the_shape_and_the_mean(size):
    torch.manual_seed(0)
    output = masks.block(torch.ones(200, 10, 12), size, 0.25, 4 / 3)
    maps = output.mean(2).flatten()
    assert output.shape == (200, 10, 12)
    assert abs(float(maps.mean()) - 1) < 5 * float(maps.std()) / len(maps) ** 0.5
