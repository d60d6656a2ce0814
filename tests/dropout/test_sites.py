import copy

import pytest
import torch
from torch import nn

from lightning_reg.dropout import find_sites, register_site
from lightning_reg.dropout.selection import select_sites
from lightning_reg.dropout.sites import candidates
from lightning_reg.dropout.steering import SteeredRate


class Config:
    def __init__(self):
        self.layerdrop = 0.2
        self.hidden_dropout = 0.1  # nothing reads it


class Layered(nn.Module):
    """Reads its rates from everywhere that real networks read them from."""

    def __init__(self):
        super().__init__()
        self.config = Config()
        self.drop_rate = 0.3
        self.dead_dropout = 0.4
        self.inner = nn.Linear(4, 4)
        self.attn_drop = nn.Dropout(0.25)  # read by fused attention and never called
        self.uncalled = nn.Dropout(0.5)
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.15, batch_first=True)
        self.gru = nn.GRU(4, 4, num_layers=1, batch_first=True)

    def forward(self, x):
        if not (self.training and torch.rand([]) < self.config.layerdrop):
            x = self.inner(x)
        q = x[:, None]
        rate = self.attn_drop.p if self.training else 0.0
        x = nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=rate)[:, 0]
        x = self.gru(self.lstm(x)[0])[0]
        return nn.functional.dropout(x, self.drop_rate, self.training)


def test_a_forward_tells_live_rates_from_dead_ones():
    net = Layered()
    sites = find_sites(net, lambda: net(torch.randn(2, 3, 4)))
    assert {site.name: (site.kind, site.built) for site in sites} == {
        "drop_rate": ("element", 0.3),
        "config.layerdrop": ("layer", 0.2),
        "attn_drop.p": ("attention", 0.25),
        "lstm.dropout": ("recurrent", 0.15),
    }


def test_without_a_forward_known_classes_are_told_from_names_and_configurations_left_out():
    known = {site.name: site.known for site in find_sites(Layered())}
    assert known == {
        "drop_rate": False,
        "dead_dropout": False,
        "attn_drop.p": True,
        "uncalled.p": True,
        "lstm.dropout": True,
    }


def test_sites_of_the_transformer_written_down_from_its_source():
    net = nn.Transformer(8, 2, 1, 1, 16, dropout=0.1, batch_first=True)
    x = torch.randn(2, 3, 8)
    attention = [
        "encoder.layers.0.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
    ]
    modules = [f"encoder.layers.0.{name}" for name in ("dropout", "dropout1", "dropout2")]
    modules += [f"decoder.layers.0.{name}" for name in ("dropout", "dropout1", "dropout2", "dropout3")]
    expected = {f"{name}.dropout": "attention" for name in attention} | {f"{m}.p": "element" for m in modules}
    assert {site.name: site.kind for site in find_sites(net, lambda: net(x, x))} == expected


def test_sites_of_a_stacked_lstm():
    stacked = nn.LSTM(3, 3, num_layers=2, dropout=0.2)
    [site] = find_sites(stacked, lambda: stacked(torch.randn(4, 1, 3)))
    assert (site.name, site.kind, site.built) == ("dropout", "recurrent", 0.2)
    single = nn.LSTM(3, 3)
    assert find_sites(single, lambda: single(torch.randn(4, 1, 3))) == []


def _outputs_differ(net, call):
    torch.manual_seed(0)
    return not torch.equal(call(), call())


@pytest.mark.parametrize("make", [Layered, lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True)])
def test_the_list_is_complete_and_each_entry_acts(make):
    net = make().train()
    x = torch.randn(4, 6, 4 if isinstance(net, Layered) else 8)
    call = (lambda: net(x)) if isinstance(net, Layered) else (lambda: net(x, x))
    sites = find_sites(net, call)
    for site in sites:
        site.set(0.0)
    assert not _outputs_differ(net, call)
    for site in sites:
        site.set(0.5)
        torch.manual_seed(0)
        first = call()
        assert any(not torch.equal(first, call()) for _ in range(12)), site.name
        site.set(0.0)
    for site in sites:
        site.set(site.built)
    assert _outputs_differ(net, call)


def test_shared_sites_are_listed_once_under_every_name():
    drop = nn.Dropout(0.1)
    [site] = find_sites(nn.Sequential(drop, nn.Linear(2, 2), drop))
    assert site.aliases == ("0.p", "2.p")


def test_wrappers_are_invisible_in_names():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    compiled = torch.compile(nn.Sequential(net), backend="eager")
    assert [site.name for site in find_sites(compiled)] == ["0.1.p"]
    assert [site.name for site in find_sites(nn.DataParallel(net))] == ["1.p"]


def test_registered_classes_and_their_subclasses_are_known():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.amount = 0.3

        def forward(self, x):
            return nn.functional.dropout(x, self.amount, self.training)

    class More(Noise):
        pass

    assert find_sites(More()) == []
    register_site(Noise, "amount", "element")
    net = More()
    [site] = find_sites(net, lambda: net(torch.ones(2)))
    assert (site.name, site.kind, site.built) == ("amount", "element", 0.3)
    net.amount = [0.3, 0.4]
    assert [site.name for site in candidates(net)] == ["amount.0", "amount.1"]
    net.amount = "0.3"
    with pytest.raises(
        TypeError, match=r"register_site\(More, 'amount'\): it holds a str, and a rate that can"
    ):
        candidates(net)
    with pytest.raises(TypeError, match="needs a module class"):
        register_site(Noise(), "amount")
    with pytest.raises(TypeError, match="name of the attribute"):
        register_site(Noise, "")


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("*", ["0.drop.p", "0.off.p", "0.attn.dropout", "1.p"]),
        ("all", ["0.drop.p", "0.off.p", "0.attn.dropout", "1.p"]),
        ("built", ["0.drop.p", "0.attn.dropout", "1.p"]),
        ("0.*", ["0.drop.p", "0.off.p", "0.attn.dropout"]),
        ("0.drop", ["0.drop.p"]),  # the module's name will do
        ("1.p", ["1.p"]),
        (["*", "!*.drop"], ["0.off.p", "0.attn.dropout", "1.p"]),
        (["!*.attn"], ["0.drop.p", "1.p"]),
        (nn.Dropout2d, ["1.p"]),
        ([nn.Dropout, nn.MultiheadAttention], ["0.drop.p", "0.off.p", "0.attn.dropout"]),
        (lambda site: site.kind == "attention", ["0.attn.dropout"]),
    ],
)
def test_selections(select, names):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.off = nn.Dropout(0.1), nn.Dropout(0.0)
            self.attn = nn.MultiheadAttention(4, 2, dropout=0.1)

    net = nn.Sequential(Block(), nn.Dropout2d(0.2))
    assert [site.name for site in select_sites(net, candidates(net), select)] == names


def test_bad_selections():
    net = nn.Sequential(nn.Dropout(0.1))
    with pytest.raises(ValueError, match=r"matches none of the 1 dropout sites.*did you mean 0\.p"):
        select_sites(net, candidates(net), "O.p")
    nested = nn.Sequential(net)
    with pytest.raises(ValueError, match=r"did you mean 0\.\*\?"):
        select_sites(nested, candidates(nested), "0")
    with pytest.raises(ValueError, match="empty"):
        select_sites(net, candidates(net), [])
    with pytest.raises(TypeError, match="not understood"):
        select_sites(net, candidates(net), int)
    off = nn.Sequential(nn.Dropout(0.0))
    with pytest.raises(ValueError, match=r"built with every dropout rate at 0: 0\.p; .*or use select='all'"):
        select_sites(off, candidates(off))
    bare = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.ReLU())
    with pytest.raises(ValueError, match=r"it has 2 ReLU, 1 Linear; add dropout to it with DropoutInjector"):
        select_sites(bare, candidates(bare), "*")


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_of_0_and_1_is_refused(rate):
    [site] = find_sites(nn.Dropout(0.1))
    with pytest.raises(ValueError, match=r"for p is not a probability; give a number from 0 to 1"):
        site.set(rate)
    assert site.get() == 0.1


def test_copies_and_pickles_of_a_steered_configuration_hold_the_built_rate():
    net = Layered()
    site = next(s for s in candidates(net) if s.name == "config.layerdrop")
    site.set(0.7)
    assert net.config.layerdrop == 0.7
    copied = copy.deepcopy(net.config)
    assert (copied.layerdrop, type(copied.layerdrop)) == (0.2, float)
    assert {s.name: s.built for s in candidates(net)}["config.layerdrop"] == 0.2
    site.set(site.built)
    assert type(net.config.layerdrop) is not SteeredRate
