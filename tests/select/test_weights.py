"""What "weights" leaves out, rule by rule, and what it takes in spite of its name or shape."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import L1
from lightning_reg.look.reach import NamedSelect, coverage
from lightning_reg.metrics import sparsity
from lightning_reg.select.parameters import named_parameters, select_parameters, why_not_selected


def _module(cls_name: str = "Block", **shapes: Any) -> nn.Module:
    """A module of a class of this name with parameters of these names and shapes."""
    module = type(cls_name, (nn.Module,), {})()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.ones(shape)))
    return module


def _listed(**shapes: tuple[int, ...]) -> nn.Module:
    lists = {name: nn.ParameterList([torch.ones(shape)]) for name, shape in shapes.items()}
    return nn.ModuleDict(lists)


def _why(module: nn.Module) -> dict[str, str]:
    return {selected.name: why_not_selected(selected) for selected in named_parameters(module)}


@pytest.mark.parametrize(
    ("module", "rule"),
    [
        (_module(relative_position_bias_table=(169, 3)), "bias"),  # Swin, BEiT
        (_module(attention_biases=(4, 49)), "bias"),  # LeViT
        (_module(bias=(5, 1, 3)), "bias"),  # an ensemble
        (_module(bias_k=(1, 1, 4)), "bias"),  # MultiheadAttention
        (nn.ModuleDict({"relative_attention_bias": nn.Embedding(32, 8)}), "bias"),  # T5
        (_module("LayerNorm2d", weight=(1, 8, 1, 1)), "normalization"),
        (_module("LlamaRMSNorm", weight=(4, 8)), "normalization"),
        (_module("BatchNormAct2d", weight=(1, 8, 1, 1)), "normalization"),
        (_module("GlobalResponseNorm", gamma=(1, 1, 1, 8)), "normalization"),
        (_module(gain=(8, 1, 1, 1)), "scale"),  # NFNet
        (_module("Affine", alpha=(1, 1, 8)), "scale"),  # ResMLP
        (_module(gamma=(8, 1)), "scale"),
        (_module(magnitude=(8, 1)), "scale"),  # DoRA by hand
        (_module(g=(8, 1)), "scale"),  # weight norm by hand
        (_module("DoraConv2dLayer", weight=(1, 8, 1, 1)), "scale"),  # PEFT
        (_listed(ia3_l=(8, 1)), "scale"),  # PEFT's IA3
        (_listed(scales=(8, 1)), "scale"),
        (_listed(biases=(5, 1, 3)), "bias"),
        (_listed(cls_tokens=(1, 4, 8)), "token"),
        (_module(A_log=(8, 4)), "logarithm"),  # Mamba
        (_module(weight_log_sigma=(8, 4)), "logarithm"),
        (_module(time_mix_key=(1, 1, 8)), "one dimension above 1"),  # RWKV
        (_module(cls_token=(1, 1, 8)), "token"),
        (_module(register_tokens=(1, 4, 8)), "token"),
        (_module(class_embedding=(1, 8)), "token"),
        (_module(pos_embed=(1, 197, 8)), "position table"),
        (_module(absolute_pos_embed=(1, 197, 8)), "position table"),
        (_module(rel_pos_h=(27, 8)), "position table"),
        (nn.ModuleDict({"wpe": nn.Embedding(32, 8)}), "position table"),
        (nn.ModuleDict({"position_embeddings": nn.Embedding(32, 8)}), "position table"),
        (_module("PosEmbedRel", height_rel=(23, 32)), "position table"),
        (_module(logit_scale=()), "fewer than two dimensions"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_left_out_and_by_which_rule(module: nn.Module, rule: str) -> None:
    assert set(_why(module).values()) == {rule}


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(8, 1, bias=False),  # one dimension above 1
        nn.Linear(1, 8, bias=False),
        nn.Conv1d(1, 8, 1, bias=False),
        nn.Embedding(1, 8),
        nn.ModuleDict({"word_embeddings": nn.Embedding(32, 8)}),
        nn.ModuleDict({"pos_proj": nn.Linear(8, 8, bias=False)}),  # of positions, but no table
        type("NormedLinear", (nn.Linear,), {})(8, 8, bias=False),
        _module("NormedLinear", weight=(8, 8)),
        _module(coefficients=(1, 8)),  # a linear model by hand
        _module(theta=(8, 1)),
        _module(kernel=(8, 1, 1)),
        _module(tokens=(1, 2, 3)),
        _module(A=(4, 8)),
        _module(b=(4, 8)),  # a factor of low rank, no bias
        _module("PositionwiseFeedForward", w1=(4, 8)),
        _module(class_prototypes=(10, 8)),
        _module(pairwise_interaction=(3, 8)),
        _listed(weights=(8, 8)),
        _listed(lora_B=(8, 1)),  # PEFT's AdaLoRA at rank 1
        nn.ModuleDict({"log_var": nn.Linear(8, 4, bias=False)}),
    ],
    ids=lambda module: "-".join([type(module).__name__, *(name for name, _ in module.named_parameters())]),
)
def test_what_is_a_weight(module: nn.Module) -> None:
    assert set(_why(module).values()) == {""}


def test_the_model_itself_says_what_is_not_decayed() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.Parameter(torch.ones(3, 3))
            self.weight = nn.Parameter(torch.ones(3, 3))
            self.state = nn.Parameter(torch.ones(3, 3))
            self.state._no_weight_decay = True  # as state-space models mark theirs

        def no_weight_decay(self) -> set[str]:
            return {"mixing"}

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def no_weight_decay(self, rate: float) -> set[str]:  # of another meaning
            raise AssertionError

    rule = "no_weight_decay of the model"
    assert _why(Other()) == {"inner.mixing": rule, "inner.weight": "", "inner.state": rule}
    assert [s.name for s in select_parameters(Other(), "*.mixing")] == ["inner.mixing"]  # named, it is taken


def test_the_report_names_the_rule() -> None:
    model = nn.ModuleDict({"wpe": nn.Embedding(4, 2), "head": nn.Linear(2, 2)})
    rows = {row.name: row.why for row in coverage(model, [NamedSelect("l1", "weights")])}
    assert rows == {"wpe.weight": "position table", "head.weight": "", "head.bias": "bias"}


class Packed(torch.Tensor):
    """A frozen weight whose numbers lie elsewhere, as those of torchao, and that can do little itself."""

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def abs(self) -> torch.Tensor:
        raise NotImplementedError


def test_what_is_quantized_is_never_selected() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    packed: Any = nn.Parameter(model[0].weight.detach().as_subclass(Packed), requires_grad=False)
    model[0].weight = packed
    assert [s.name for s in select_parameters(model, ["all", "!*.bias"])] == ["1.weight"]
    assert why_not_selected(named_parameters(model)[0]) == "quantized"
    assert sparsity(model) == 0.0


def test_floats_of_eight_bits_are_quantized() -> None:
    model = nn.Linear(3, 2)
    packed: Any = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    model.register_parameter("packed", packed)
    assert [s.name for s in select_parameters(model, "all")] == ["weight", "bias"]
    assert _why(model)["packed"] == "quantized"
    assert sparsity(model) == 0.0


def test_what_is_not_floating_point_is_never_selected() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_parameter(
        "packed", nn.Parameter(torch.ones(4, 4, dtype=torch.uint8), requires_grad=False)
    )
    for select in ("weights", "all", "*", nn.Linear, lambda *_: True):
        assert "0.packed" not in [s.name for s in select_parameters(model, select)]
    with pytest.raises(ValueError, match="matches none"):
        select_parameters(model, "0.packed")
    assert _why(model)["0.packed"] == "not floating point"


def _old(apply: Any, **kwargs: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        return apply(nn.Linear(4, 3), **kwargs)


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    return prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=0.5)


class _Low(nn.Module):
    """A user's parametrization, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.a


def _own() -> nn.Module:
    layer = nn.Linear(4, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", _Low())
    return layer


DERIVED = {
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "old weight_norm": lambda: _old(nn.utils.weight_norm),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
    "old spectral_norm": lambda: _old(nn.utils.spectral_norm),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 3)),
    "own": _own,
    "prune": _pruned,
}


@pytest.mark.parametrize("kind", DERIVED)
def test_a_computed_weight_is_one_thing_and_is_what_the_layer_uses(kind: str) -> None:
    torch.manual_seed(0)
    layer = DERIVED[kind]()
    layer(torch.ones(1, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    net = nn.Sequential(layer)
    (weight,) = select_parameters(net, "weights")
    assert weight.name == "0.weight" and weight.module is layer
    layer.eval()
    with torch.no_grad():
        layer(torch.ones(1, 4))  # where a hook computes the weight, it does so now
        expected = layer.weight.clone()
    layer.train()
    torch.testing.assert_close(weight.used(), expected)
    for name, value in layer.state_dict().items():  # looking moves no power iteration
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    sources = {id(p) for p in layer.parameters() if p is not layer.bias}
    assert {id(p) for p in weight.sources} == sources
    gradients = torch.autograd.grad(weight.used().square().sum(), weight.sources)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[:1])
    for select in ("all", nn.Linear, "*"):
        assert {s.name for s in select_parameters(net, select)} == {"0.weight", "0.bias"}


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm"])
def test_the_scale_of_a_weight_norm_is_selected_by_its_own_name_alone(kind: str) -> None:
    net = nn.Sequential(DERIVED[kind]())
    glob = "*original0" if kind == "weight_norm" else "*_g"
    (scale,) = select_parameters(net, glob)
    assert scale.parameter.shape == (3, 1) and scale.derived is None
    assert why_not_selected(scale) == "scale of 0.weight"


def test_weights_without_values_are_refused() -> None:
    for target in (nn.Linear(2, 2, device="meta"), nn.Linear(2, 2, device="meta").weight):
        with pytest.raises(ValueError, match="is on the meta device, which holds no values"):
            L1(1.0)(target)
