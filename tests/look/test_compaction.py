"""Dead units are cut, and the outputs stay."""

import copy
import io
import warnings
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from lightning_reg import L1, Coupled, GroupLasso, TargetSparsity, attach, compact, size_table
from lightning_reg.look.sizes import sizes_of
from lightning_reg.tensors.shards import local
from tests.select.test_weights import DERIVED

pytest.importorskip("torch_pruning")


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x):
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class ResNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.block1, self.block2 = Block(width), Block(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.head(self.block2(self.block1(x)).mean((2, 3)))


def units(block):
    """A block's inner filters, with what normalizes them and what reads them."""
    return {
        f"{block}.conv1.weight": "filters",
        f"{block}.norm1.weight": "rows",
        f"{block}.norm1.bias": "rows",
        f"{block}.conv2.weight": "channels",
    }


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def same(model, smaller, x):
    with torch.no_grad():
        torch.testing.assert_close(smaller.eval()(x), model.eval()(x), rtol=0, atol=1e-5)


def train_resnet(width=16, steps=300, seed=0):
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16).float().view(-1, 1, 8, 8), torch.tensor(y)
    torch.manual_seed(seed)
    model = ResNet(width)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)  # so that it ends settled
    penalty = GroupLasso(
        TargetSparsity(0.5, initial=1e-3, every=2, until=0.6),
        groups=Coupled([units("block1"), units("block2")]),
    )
    attach(model, optimizer, penalty, apply="proximal", total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        decay.step()
    accuracy = (model.eval()(x).argmax(1) == y).float().mean().item()
    return model, x, accuracy


@pytest.mark.slow
def test_a_resnet_trained_with_coupled_filters_becomes_smaller():
    model, x, accuracy = train_resnet()
    smaller = compact(model, x[:2])
    same(model, smaller, x[:200])
    assert accuracy > 0.9
    assert smaller.block1.conv1.weight.shape[0] + smaller.block2.conv1.weight.shape[0] <= 18
    assert parameters(smaller) < 0.75 * parameters(model)
    smaller.train()
    nn.functional.cross_entropy(smaller(x[:4]), torch.zeros(4, dtype=torch.long)).backward()  # it trains on


def kill(layer, *dead):
    with torch.no_grad():
        layer.weight[list(dead)] = 0.0


def test_constants_of_dead_units_move_into_the_next_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
    kill(model[0], 1, 4, 6)
    smaller = compact(model, torch.randn(4, 5))
    assert smaller[0].out_features == 5 and smaller[2].bias is not None
    same(model, smaller, torch.randn(20, 5))
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
    model.append(nn.Linear(4 * 16, 3))
    kill(model[0], 0, 5)
    kill(model[3], 2)
    smaller = compact(model, torch.randn(2, 1, 8, 8))
    assert smaller[0].out_channels == 4 and smaller[3].out_channels == 3 and smaller[5].in_features == 48
    same(model, smaller, torch.randn(20, 1, 8, 8))


def test_what_cannot_be_cut_is_kept():
    torch.manual_seed(0)
    padded = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.Flatten())
    padded.append(nn.Linear(4 * 36, 3))
    padded[0].bias.data.fill_(1.0)
    kill(padded[0], 0)  # puts out 1, and the next layer's border would tell
    with pytest.warns(
        UserWarning, match="keeps dead .* 1 of 0, as the border of 2 would tell their constant"
    ):
        smaller = compact(padded, torch.randn(2, 1, 8, 8))
    assert smaller[0].out_channels == 6
    normed = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    kill(normed[0], 1)
    with pytest.warns(UserWarning, match="1 of 0, as 1, a LayerNorm, depends on all of them"):
        assert compact(normed, torch.randn(2, 5))[0].out_features == 8
    last = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    kill(last[2], 1)  # an output of the model
    kill(last[0], *range(8))
    smaller = compact(last, torch.randn(2, 5))
    assert smaller[0].out_features == 1 and smaller[2].out_features == 3
    same(last, smaller, torch.randn(9, 5))


def test_a_residual_sum_loses_a_unit_only_where_all_of_it_is_dead():
    torch.manual_seed(0)
    model = ResNet(8).eval()
    for conv in (model.stem, model.block1.conv2, model.block2.conv2):
        kill(conv, 3)
    kill(model.stem, 5)
    for norm in (model.norm, model.block1.norm2, model.block2.norm2):
        norm.bias.data.zero_()
    with pytest.warns(
        UserWarning, match="1 of stem, as they are joined to units of block2.conv2 that are not"
    ):
        smaller = compact(model, torch.randn(2, 1, 8, 8))
    assert smaller.stem.out_channels == 7 and smaller.head.in_features == 7
    same(model, smaller, torch.randn(9, 1, 8, 8))


def test_without_an_example_it_is_refused():
    with pytest.raises(ValueError, match="give it an example_input"):
        compact(nn.Linear(4, 4))


def test_feed_forward_units_of_an_encoder_are_cut_and_its_heads_kept():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)).eval()
    kill(model[0].layers[0].linear1, 0, 3, 5)
    model[0].layers[0].linear1.bias.data[:4] = 0.7  # a constant, which the next bias takes
    kill(model[0].layers[1].linear1, *range(9))
    smaller = compact(model, torch.randn(2, 5, 8))
    assert [one.linear1.out_features for one in smaller[0].layers] == [13, 7]
    same(model, smaller, torch.randn(4, 5, 8))


@pytest.mark.parametrize("padding", [0, 1])
def test_a_scale_of_zero_is_a_dead_filter(padding):
    """Network slimming: L1 on the scales of batch normalization, then cut."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=padding),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()
    model[1].weight.data[[0, 2, 5]] = 0.0
    model[1].bias.data[:] = torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0, 0.4])
    model[4].weight.data[1] = 0.0
    model[4].bias.data[1] = 0.3
    border = pytest.warns(UserWarning, match="1 of 0, as the border of 3") if padding else nullcontext()
    with border:
        smaller = compact(model, torch.randn(2, 1, 8, 8))
    # the shift of 0.4 comes through the ReLU; a padded layer sees where it ends, another one takes it up
    assert smaller[0].out_channels == (3 if padding == 0 else 4)
    assert smaller[3].out_channels == 3
    same(model, smaller, torch.randn(9, 1, 8, 8))


@pytest.mark.parametrize("transposed", [False, True])
def test_one_channel_carries_the_constants_that_a_border_would_tell(transposed):
    """What a padded convolution makes of a constant is in proportion to it, so that one channel is enough."""
    torch.manual_seed(0)
    last = nn.ConvTranspose2d(6, 3, 3, padding=1) if transposed else nn.Conv2d(6, 3, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), last).eval()
    model[1].weight.data[:4] = 0.0
    model[1].bias.data[:] = torch.tensor([0.3, 1.2, -0.5, 0.7, 0.1, -0.1])
    with pytest.warns(UserWarning, match="1 of 0, as the border of 3 would tell their constant"):
        smaller = compact(model, torch.randn(2, 1, 8, 8))
    assert smaller[0].out_channels == 3  # two live, and the one that carries
    same(model, smaller, torch.randn(9, 1, 8, 8))


def test_constants_that_two_layers_read_are_carried_to_both():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
            self.padded, self.other = nn.Conv2d(6, 3, 3, padding=1), nn.Conv2d(6, 3, 1)
            self.strided = nn.Conv2d(6, 3, 5, stride=1, padding=2, padding_mode="circular")

        def forward(self, x):
            h = self.norm(self.first(x))
            return self.padded(h.relu()) + self.other(h) + self.strided((h + 0.5).relu())

    torch.manual_seed(0)
    model = Fork().eval()
    model.norm.weight.data[:5] = 0.0
    # the first shift reaches one of the padded layers alone, so that it could not carry the others
    model.norm.bias.data[:] = torch.tensor([-0.2, 1.2, 0.6, 0.7, -0.9, -0.1])
    with pytest.warns(UserWarning, match="of first, as the border of"):
        smaller = compact(model, torch.randn(2, 1, 8, 8))
    assert smaller.first.out_channels == 2
    same(model, smaller, torch.randn(9, 1, 8, 8))


def test_network_slimming_of_padded_layers_with_pooling():
    """The documented recipe, trained: what has no scale is cut, but for one channel in each layer."""
    torch.manual_seed(0)
    widths, layers = (1, 12, 16, 16), []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(64, 1, 8, 8)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    attach(model, optimizer, L1(6e-2, select=["1.weight", "5.weight", "9.weight"]), apply="proximal")
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    alive = [int((model[i].weight != 0).sum()) for i in (1, 5, 9)]
    assert all(0 < count < width - 2 for count, width in zip(alive, widths[1:], strict=True)), alive
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = compact(model, x[:2])
    kept = [smaller[i].out_channels for i in (0, 4, 8)]
    assert all(count <= live + 1 for count, live in zip(kept, alive, strict=True)), (kept, alive)
    same(model, smaller, torch.randn(9, 1, 8, 8))


def test_a_scale_of_zero_on_one_side_of_a_sum_kills_nothing():
    model = ResNet(8).eval()
    model.block1.norm2.weight.data[3] = 0.0
    with pytest.warns(UserWarning, match="1 of block1.conv2, as they are joined to units of block2.conv2"):
        smaller = compact(model, torch.randn(2, 1, 8, 8))
    assert smaller.stem.out_channels == 8
    same(model, smaller, torch.randn(9, 1, 8, 8))


CONVOLUTIONS = {
    "1-D": (nn.Conv1d(1, 6, 3), nn.Conv1d(6, 2, 3), (2, 1, 9)),
    "3-D": (nn.Conv3d(1, 6, 3), nn.Conv3d(6, 2, 3), (2, 1, 6, 6, 6)),
    "transposed": (nn.ConvTranspose2d(1, 6, 3), nn.ConvTranspose2d(6, 2, 3), (2, 1, 5, 5)),
    "transposed 1-D": (nn.ConvTranspose1d(1, 6, 3), nn.Conv1d(6, 2, 3), (2, 1, 9)),
}


@pytest.mark.parametrize(("first", "second", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_of_every_kind_are_cut(first, second, shape):
    torch.manual_seed(0)
    model = nn.Sequential(first, nn.ReLU(), second)
    rows = first.weight if not first.transposed else first.weight.transpose(0, 1)
    rows.data[[1, 4]] = 0.0
    first.bias.data[[1, 4]] = 0.0
    smaller = compact(model, torch.randn(shape))
    assert smaller[0].out_channels == 4 and smaller[2].in_channels == 4
    same(model, smaller, torch.randn(shape))


class Lit(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.example_input_array = torch.randn(2, 4)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_lightning_module_stays_one_and_trains_on():
    module = Lit()
    kill(module.net[0], 1, 2)
    smaller = compact(module)
    assert isinstance(smaller, Lit) and smaller.net[0].out_features == 6
    trainer = Trainer(
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = smaller.net[0].weight.detach().clone()
    trainer.fit(smaller, DataLoader(torch.randn(8, 4), 4))
    assert not torch.equal(smaller.net[0].weight, before)


def test_the_table_of_sizes():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    kill(model[0], *range(4))
    x = torch.randn(3, 4)
    lines = size_table(model, compact(model, x), x).splitlines()
    assert lines[1].split() == ["parameters", "58", "30", "0.52"]
    assert lines[2].split() == ["MACs", "144", "72", "0.50"]
    assert lines[3].split()[0] == "milliseconds"
    convolution = nn.Conv2d(2, 3, 3, bias=False)
    assert sizes_of(convolution, torch.randn(1, 2, 6, 6)).macs == 2 * 3 * 9 * 16


def test_a_model_in_parts_is_refused_before_anything_is_changed():
    tensor = pytest.importorskip("torch.distributed.tensor")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))
        kill(model[0], 1, 4)
        tensor.distribute_module(model[0], dist.init_device_mesh("cpu", (1,)))
        before = {parameter: local(parameter).clone() for parameter in model.parameters()}
        with pytest.raises(ValueError, match=r"and 0\.weight is shared out over several; load the full"):
            compact(model, torch.randn(4, 5))
        assert isinstance(model[0].weight, tensor.DTensor) and list(model.parameters()) == list(before)
        assert all(torch.equal(local(parameter), was) for parameter, was in before.items())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", DERIVED)
def test_a_computed_weight_is_cut_as_it_is_used(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(DERIVED[kind](), nn.ReLU(), nn.Linear(3, 1)).eval()
    x = torch.randn(5, 4)
    if kind in ("weight_norm", "old weight_norm"):
        with torch.no_grad():
            scale = next(p for n, p in model.named_parameters() if n.endswith(("original0", "_g")))
            scale[1] = 0.0
    if kind == "prune":
        prune.ln_structured(model[0], "weight", amount=1, n=2, dim=0)
    expected = model(x)
    smaller = compact(model, x)
    torch.testing.assert_close(smaller(x), expected)
    dead = kind in ("weight_norm", "old weight_norm", "prune")
    assert isinstance(smaller[0].weight, nn.Parameter)
    assert smaller[0].weight.shape == (2 if dead else 3, 4)
    assert {n for n, _ in smaller[0].named_parameters()} == {"weight", "bias"}
    torch.testing.assert_close(model(x), expected)


def _conv_net() -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten()
    )
    model.append(nn.Linear(64, 3))
    kill(model[0], 1, 2)
    return model, torch.randn(3, 1, 8, 8)


def _encoder() -> tuple[nn.Module, torch.Tensor]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    one = model[0].layers[0]
    kill(one.linear1, 0, 3)
    with torch.no_grad():
        for tensor in (one.self_attn.in_proj_weight, one.self_attn.in_proj_bias):
            tensor.unflatten(0, (3, 2, 4))[:, 0] = 0.0
    return model, torch.randn(3, 5, 8)


def _lightning() -> tuple[nn.Module, torch.Tensor]:
    module = Lit()
    kill(module.net[0], 1, 2)
    return module, torch.randn(3, 4)


def _exported(model, x):
    return torch.export.export(model, (x,)).module()


def _scripted(model, x):
    return torch.jit.script(getattr(model, "net", model))


def _traced(model, x):
    return torch.jit.trace(getattr(model, "net", model), x)


def _copied(model, x):
    return copy.deepcopy(model)


def _stored(model, x):
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    return torch.load(stored, weights_only=False)


@pytest.mark.parametrize("make", [_conv_net, _encoder, _lightning])
@pytest.mark.parametrize("way", [_exported, _traced, _stored, _copied])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_result_goes_where_a_model_goes(make, way):
    _goes(make, way)


@pytest.mark.parametrize("make", [_conv_net, _lightning])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_result_is_scripted(make):
    """Not that of an encoder which lost heads: the encoder's own forward wants torch's attention there."""
    _goes(make, _scripted)


def _goes(make, way):
    torch.manual_seed(0)
    model, x = make()
    smaller = compact(model.eval(), x)
    assert parameters(smaller) < parameters(model)
    with torch.no_grad():
        torch.testing.assert_close(way(smaller, x)(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [_conv_net, _encoder, _lightning])
def test_the_result_becomes_onnx(make):
    """By torch's own exporter, and run by onnx's reference; both packages are optional."""
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    torch.manual_seed(0)
    model, x = make()
    stored = io.BytesIO()
    torch.onnx.export(compact(model.eval(), x), (x,), dynamo=True).save(stored)
    runner = reference.ReferenceEvaluator(stored.getvalue())
    (result,) = runner.run(None, {runner.input_names[0]: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(x).detach(), rtol=0, atol=1e-5)


def test_a_module_in_another_guise():
    """Inference mode and torch.compile hide what the layers are; a script is refused."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    kill(model[0], 1, 2)
    with torch.inference_mode():
        smaller = compact(model, torch.randn(3, 4))
    assert smaller[0].out_features == 6
    smaller(torch.randn(3, 4)).sum().backward()  # it trains on
    assert compact(torch.compile(model, backend="eager"), torch.randn(3, 4))[0].out_features == 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, which is deprecated
        script = torch.jit.script(model)
    with pytest.raises(TypeError, match="cannot cut a ScriptModule; cut the module, and script the result"):
        compact(script, torch.randn(3, 4))


def test_modules_keep_their_modes():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)).train()
    model[1].eval()
    smaller = compact(model, torch.zeros(1, 4))
    assert [one.training for one in smaller] == [True, False, True, True]
