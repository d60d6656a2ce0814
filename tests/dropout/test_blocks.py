import pytest
from torch import nn

from lightning_reg.dropout.blocks import depth_factors
from lightning_reg.dropout.sites import candidates


class Named(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def feed_forward():
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 4), nn.Dropout(0.1))


def block():
    return Named(attention=nn.MultiheadAttention(4, 2, dropout=0.1), net=feed_forward())


NETWORKS = {
    "pairs": (
        lambda: Named(
            layers=nn.ModuleList(nn.ModuleList([nn.Linear(4, 4), feed_forward()]) for _ in range(3))
        ),
        [1, 1, 2, 2, 3, 3],
    ),
    "blocks": (lambda: Named(blocks=nn.Sequential(block(), block())), [1, 1, 1, 2, 2, 2]),
    "stages": (
        lambda: Named(
            stages=nn.ModuleList(Named(blocks=nn.ModuleList([block(), block()])) for _ in range(2))
        ),
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4],
    ),
    "stages in stages": (
        lambda: nn.Sequential(nn.Sequential(block(), block()), nn.Sequential(block())),
        [1, 1, 1, 2, 2, 2, 3, 3, 3],
    ),
    "flat": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.1)), [1, 2]),
    "outside": (lambda: Named(pos=nn.Dropout(0.1), layers=nn.ModuleList([block()])), [1, 2, 2, 2]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_counted_and_not_the_lists_inside_of_one(name):
    make, expected = NETWORKS[name]
    net = make()
    factors = depth_factors(net, candidates(net))
    assert factors == pytest.approx([number / max(expected) for number in expected])


def test_what_a_configuration_holds_for_the_whole_network_is_no_block():
    net = Named(layers=nn.ModuleList([block(), block()]))
    net.config = {"layerdrop": 0.1}
    assert depth_factors(net, candidates(net)) == [1.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0]
