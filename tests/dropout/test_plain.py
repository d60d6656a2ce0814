import copy

import pytest
import torch
from torch import nn

from lightning_reg import ByDepth, Linear, mc_dropout, schedule_dropout


class Own(nn.Module):
    """Reads its rate from a dictionary, which a forward has to show."""

    def __init__(self):
        super().__init__()
        self.settings = {"dropout": 0.5}
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return self.drop(nn.functional.dropout(x, self.settings["dropout"], self.training))


def share(output):
    return float((output == 0).float().mean())


def test_a_plain_loop_follows_the_schedule_and_everything_is_put_back():
    torch.manual_seed(0)
    net, x = Own(), torch.ones(100, 100)
    handle = schedule_dropout(net, Linear(0.0, 0.8), total_steps=8)
    shares = []
    for _ in range(8):
        shares.append(share(net(x)))
        handle.step()
    assert shares == pytest.approx([1 - (1 - 0.1 * t) ** 2 for t in range(8)], abs=0.02)
    assert [name for name, *_ in handle.report().steered] == ["drop.p", "settings.dropout"]
    assert (copy.deepcopy(net).settings, copy.deepcopy(net).drop.p) == ({"dropout": 0.5}, 0.1)
    handle.remove()
    handle.remove()
    assert (net.settings, net.drop.p, type(net), type(net.drop)) == ({"dropout": 0.5}, 0.1, Own, nn.Dropout)


def test_another_writer_is_noticed_at_the_next_step_and_its_rate_replaced():
    net = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.1))
    handle = schedule_dropout(net, Linear(0.0, 0.8), total_steps=8)
    for _ in range(3):
        handle.step()
    net[1].p = 0.7
    handle.step()
    assert [module.p for module in net] == [0.4, 0.4]
    report = handle.report()
    assert report.named == {"1.p": "somebody else writes it, too"} and report.waiting == ["0.p"]
    handle.remove()


def test_the_state_goes_on_where_it_was():
    first, second = nn.Sequential(nn.Dropout(0.5)), nn.Sequential(nn.Dropout(0.5))
    handle = schedule_dropout(first, Linear(0.0, 0.8), total_steps=8)
    for _ in range(3):
        handle.step()
    resumed = schedule_dropout(second, Linear(0.0, 0.8), total_steps=8)
    resumed.load_state_dict(handle.state_dict())
    assert second[0].p == first[0].p == handle.rate == pytest.approx(0.3)


def test_selection_relative_rates_and_depth():
    net = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1 * i)) for i in range(3))
    handle = schedule_dropout(net, 2.0, relative=True)
    assert [block[1].p for block in net] == pytest.approx([0.0, 0.2, 0.4])
    with pytest.raises(ValueError, match=r"1\.1\.p would be steered by two callbacks.*disjoint"):
        schedule_dropout(net, 0.5, select="1.*")
    handle.remove()
    handle = schedule_dropout(net, ByDepth(0.3), select="all")
    assert [block[1].p for block in net] == pytest.approx([0.1, 0.2, 0.3])
    handle.remove()
    with pytest.raises(ValueError, match="between 0 and 1"):
        schedule_dropout(net, 1.5)
    with pytest.raises(ValueError, match="has no known length"):
        schedule_dropout(net, Linear(0.0, 0.5))


def test_parts_that_are_called_without_the_root_are_watched():
    torch.manual_seed(0)
    net, x = nn.ModuleDict({"encoder": Own()}), torch.ones(100, 100)
    handle = schedule_dropout(net, 0.0)
    assert share(net["encoder"](x)) == 0.0 and type(net["encoder"]) is Own
    assert handle.report().complete
    handle.remove()


def test_predictions_with_dropout_on():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    x = torch.ones(3, 4)
    before = copy.deepcopy(net.state_dict())
    mean, spread = mc_dropout(net, x, samples=400)
    torch.testing.assert_close(mean, net(x), atol=0.1, rtol=0.0)
    expected = net[2].weight.detach().norm() / (1 + 1e-5) ** 0.5  # each input varies by 1
    torch.testing.assert_close(spread, expected.expand(3, 1), atol=0.1, rtol=0.0)
    assert not mc_dropout(net, x, rate=0.0).spread.any()
    assert not any(m.training for m in net.modules()) and net[0].p == 0.5
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with pytest.raises(ValueError, match="give 2 or more"):
        mc_dropout(net, x, samples=1)
    with pytest.raises(ValueError, match="no place that drops"):
        mc_dropout(nn.Linear(2, 2), x)


def test_predictions_of_a_transformer_do_not_take_the_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True).eval()
    assert bool((mc_dropout(layer, torch.randn(2, 3, 8)).spread > 0).all()) and not layer.training
