"""Units found from one forward: what goes together, against sets written out by hand."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import GroupLasso, LInf, SparseGroupLasso, TargetSparsity, Units, attach
from lightning_reg.callbacks import MaxNorm, PenaltyCallback
from lightning_reg.groups.layout import Labels, Slices
from lightning_reg.groups.tracing import dependency_graph, group_of, traceable_copy
from lightning_reg.groups.unit_sets import layout_along
from lightning_reg.metrics import group_sparsity

IMAGES = torch.zeros(2, 1, 8, 8)
TOKENS = torch.zeros(2, 5, 8)


class Block(nn.Module):
    """A residual block as ResNet has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.down(x))


class Attention(nn.Module):
    """Two queries to a key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads = 4, 2
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.o_proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in (self.k_proj, self.v_proj))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(h.transpose(1, 2).flatten(2))


def _residual() -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(stem, Block(4, 4), Block(4, 6), nn.Flatten(), nn.Linear(6 * 64, 3))


def _encoder() -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3))


def _depthwise() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.PReLU(4), nn.Conv2d(4, 2, 1)
    )


STEM = {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"}
CASES: dict[str, tuple[nn.Module, Tensor, list[tuple[set[str], int]]]] = {
    "perceptron": (
        nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)),
        TOKENS,
        [({"0.weight", "0.bias"}, 5), ({"2.weight", "2.bias"}, 4)],
    ),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 3)),
        IMAGES,
        [({"0.weight", "0.bias", "1.weight", "1.bias"}, 4)],
    ),
    "depthwise": (
        _depthwise(),
        IMAGES,
        [({"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}, 4)],
    ),
    "across residual sums": (
        _residual(),
        IMAGES,
        [
            (STEM | {"1.conv2.weight", "1.bn2.weight", "1.bn2.bias"}, 4),
            ({"1.conv1.weight", "1.bn1.weight", "1.bn1.bias"}, 4),
            ({"2.conv1.weight", "2.bn1.weight", "2.bn1.bias"}, 6),
            ({"2.conv2.weight", "2.bn2.weight", "2.bn2.bias", "2.down.weight", "2.down.bias"}, 6),
        ],
    ),
    "encoder layer": (
        _encoder(),
        TOKENS,
        [
            ({"0.layers.0.linear1.weight", "0.layers.0.linear1.bias"}, 16),
            ({"0.layers.0.self_attn.in_proj_weight", "0.layers.0.self_attn.in_proj_bias"}, 2),
        ],
    ),
    "grouped queries": (
        nn.Sequential(Attention(), nn.LayerNorm(8)),
        TOKENS,
        [({f"0.{p}_proj.{what}" for p in "qkv" for what in ("weight", "bias")}, 2)],
    ),
}


@pytest.mark.parametrize(("model", "example", "expected"), CASES.values(), ids=CASES)
def test_what_goes_together(model: nn.Module, example: Tensor, expected: list[tuple[set[str], int]]) -> None:
    found = Units(example).find(model)
    assert [(set(forms), next(iter(forms.values())).count) for forms in found] == expected
    assert all(
        layout.count == count
        for forms, (_, count) in zip(found, expected, strict=True)
        for layout in forms.values()
    )


@pytest.mark.parametrize(("model", "example"), [case[:2] for case in CASES.values()], ids=CASES)
def test_a_unit_of_zeros_puts_out_zeros(model: nn.Module, example: Tensor) -> None:
    """Whatever reads a dead unit may hold anything."""
    model = copy.deepcopy(model).eval()
    example = torch.randn_like(example)
    by_name = dict(model.named_parameters())
    dead = torch.tensor([True, False])
    with torch.no_grad():
        for forms in Units(example).find(model):
            for name, layout in forms.items():
                view = layout.view(by_name[name])
                view.mul_(layout.spread(~dead.repeat(layout.count)[: layout.count], view))
        readers = {
            "1.conv2": slice(None, None, 2),
            "2.conv2": slice(None, None, 2),
            "4": None,
            "2": slice(None, None, 2),
            "0.layers.0.linear2": slice(None, None, 2),
        }
        before = model(example)
        for name, places in readers.items():
            layer = dict(model.named_modules()).get(name)
            if isinstance(layer, nn.Linear | nn.Conv2d) and places is not None and layer.weight.shape[1] > 1:
                layer.weight[:, places] = 7.0
        torch.testing.assert_close(model(example), before)


def test_a_penalty_the_metric_and_the_controller_count_the_same() -> None:
    model, units = _residual(), Units(IMAGES)
    for penalty in (GroupLasso, SparseGroupLasso, LInf):
        bound = penalty(1.0, groups=units).bind(penalty(1.0, groups=units).choose(_selected(model)))
        sizes = bound.sizes(list(model.parameters()))
        assert sizes.numel() == 4 + 4 + 6 + 6
    with torch.no_grad():
        for name in CASES["across residual sums"][2][1][0]:
            dict(model.named_parameters())[name][:2] = 0.0
    assert group_sparsity(model, units).item() == pytest.approx(2 / 20)


def test_the_value_is_that_of_the_sets() -> None:
    model = _depthwise()
    value = GroupLasso(0.5, groups=Units(IMAGES))(model)
    parts = [model[0].weight, model[0].bias, model[1].weight, model[1].bias, model[2].weight, model[2].bias]
    rows = torch.cat([part.detach().reshape(4, -1) for part in parts], dim=1)
    torch.testing.assert_close(value.detach(), 0.5 * rows.norm(dim=1).sum() * rows.shape[1] ** 0.5)


def test_select_narrows_to_whole_sets() -> None:
    model = _residual()
    penalty = GroupLasso(1.0, "1.conv1.*", groups=Units(IMAGES))
    assert {s.name for s in penalty.choose(_selected(model))} == {
        "1.conv1.weight",
        "1.bn1.weight",
        "1.bn1.bias",
    }
    with pytest.raises(ValueError, match=r"is cut together with 0\.0\.weight"):
        GroupLasso(1.0, "1.*", groups=Units(IMAGES)).choose(_selected(model))
    with pytest.raises(ValueError, match="finds no units"):
        GroupLasso(1.0, "4.weight", groups=Units(IMAGES)).choose(_selected(model))


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="has no example; set its example_input_array, or give"):
        GroupLasso(1.0, groups="units")(_residual())
    with pytest.raises(ValueError, match="cannot trace Sequential with the example that it has"):
        GroupLasso(1.0, groups=Units(torch.zeros(2, 3)))(_residual())
    with pytest.raises(ValueError, match="finds no units in LSTM"):
        GroupLasso(1.0, groups=Units(torch.zeros(2, 5, 3)))(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="finds no units in Linear"):
        GroupLasso(1.0, groups=Units(torch.zeros(2, 3)))(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="spans several tensors"):
        Units(TOKENS) and GroupLasso(1.0, groups=lambda n, p, m: "units")(nn.Linear(3, 4))


class Transposed(nn.Module):
    """A linear layer that stores its matrix as ``(in, out)``, as transformers' Conv1D does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_layer_that_the_package_does_not_know_is_named_where_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on transformers' GPT-2; where the model rejects the example, the sentence asks for another."""
    pruning = pytest.importorskip("torch_pruning")

    def build(*args: object, **options: object) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr(pruning.DependencyGraph, "build_dependency", build)
    net = nn.Sequential(nn.Linear(8, 6), Transposed(6, 4), nn.Linear(4, 2))
    says = (
        r"unsupported operand; torch-pruning may not know 1, a Transposed with weights of its own; write the"
    )
    with pytest.raises(ValueError, match=says):
        GroupLasso(1.0, groups=Units(TOKENS))(net)
    with pytest.raises(
        ValueError, match=r"unsupported operand; give an example that forward takes, or write"
    ):
        GroupLasso(1.0, groups=Units(torch.zeros(2, 3)))(net)


@pytest.mark.parametrize("name", ["across residual sums", "depthwise", "encoder layer"])
def test_other_weights_and_another_batch_have_the_same_units(name: str) -> None:
    """So processes that each look at their own batch share out the same units."""
    model, example, _ = CASES[name]
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(generator=generator)
    batch = torch.randn(3, *example.shape[1:], generator=generator)
    one, two = Units(example).find(model), Units(batch).find(other)
    assert [list(forms) for forms in one] == [list(forms) for forms in two]
    for forms, others in zip(one, two, strict=True):
        for layout, another in zip(forms.values(), others.values(), strict=True):
            assert isinstance(layout, Slices) and layout == another


def test_a_model_in_parts_is_refused() -> None:
    """As FSDP2 and tensor parallelism leave it."""
    tensor = pytest.importorskip("torch.distributed.tensor")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        tensor.distribute_module(model[0], torch.distributed.init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        says = r"needs a model that one process holds whole, and 0\.weight is shared out over several; call "
        with pytest.raises(ValueError, match=says):
            attach(model, optimizer, GroupLasso(0.1, groups=Units(TOKENS)), apply="proximal")
    finally:
        torch.distributed.destroy_process_group()


def test_finding_leaves_the_model_and_the_generator_alone() -> None:
    model = _residual().train()
    model[1].requires_grad_(False)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    Units(IMAGES).find(model)
    assert model.training
    assert not model[1].conv1.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), generator)
    torch.testing.assert_close(dict(model.state_dict()), dict(before))
    assert pickle.loads(pickle.dumps(Units(IMAGES))).example.shape == IMAGES.shape
    assert repr(Units(IMAGES)) == "Units(example=(2, 1, 8, 8))"


def test_channels_in_another_order_are_labelled() -> None:
    assert isinstance(layout_along((3, 2), 0, torch.arange(3), 3), Slices)
    permuted = layout_along((3, 2), 0, torch.tensor([2, 0, 1]), 3)
    assert isinstance(permuted, Labels)
    assert permuted.labels.tolist() == [[2, 2], [0, 0], [1, 1]]


class Lit(LightningModule):
    """A net around which nothing is known but its example."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 2)
        )
        self.example_input_array = IMAGES

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_takes_the_example_of_the_module() -> None:
    torch.manual_seed(0)
    module = Lit()
    data = TensorDataset(torch.randn(16, 1, 8, 8), torch.randint(2, (16,)))
    callback = PenaltyCallback(GroupLasso(10.0, groups="units"), apply="proximal")
    Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(data, 8))
    assert group_sparsity(module, "units") == 1.0
    assert not module.net[1].bias.any()
    assert module.net[4].weight.any()


def test_a_constraint_on_units_is_refused() -> None:
    with pytest.raises(ValueError, match="works on groups within a tensor"):
        MaxNorm(1.0, groups="units")


@pytest.mark.slow
def test_half_of_the_units_beside_batch_norm() -> None:
    """The recipe: the share is met by units, none of them biases, and running statistics stay fresh."""
    torch.manual_seed(0)
    x = torch.randn(256, 1, 8, 8)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 2),
    )
    units = Units(x[:2])
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    attach(
        net,
        optimizer,
        GroupLasso(TargetSparsity(0.5, until=0.5), groups=units),
        apply="proximal",
        total_steps=120,
    )
    for _ in range(30):
        for part in torch.randperm(256).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    assert abs(group_sparsity(net, units).item() - 0.5) <= 2 / 32
    accuracy = (net.eval()(x).argmax(1) == y).float().mean()
    assert accuracy > 0.9


def _selected(model: nn.Module) -> list:
    from lightning_reg.select.parameters import named_parameters

    return named_parameters(model)


def test_a_group_without_an_end_in_sight_is_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    assert len(Units(x).find(net)) == 1
    twin = traceable_copy(net, "this")
    graph = dependency_graph(twin, x, "this")
    monkeypatch.setattr("lightning_reg.groups.tracing.STEPS", 0)
    with pytest.raises(ValueError, match="more than 0 layers are joined to units of a Linear"):
        group_of(graph, twin[0], [0])
    assert Units(x).find(copy.deepcopy(net)) == []
