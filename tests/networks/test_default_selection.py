"""The default selection beside each family's own list of what is not decayed, without weights (on meta)."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from transformers.trainer_pt_utils import get_parameter_names

from lightning_reg.select.parameters import named_parameters, why_not_selected
from tests.turns import part_of, turn

pytestmark = pytest.mark.filterwarnings("ignore")

#: Rules that go beyond the families' own lists; every other one must agree with them.
BEYOND = {
    "position table",
    "token",
    "scale",
    "logarithm",
    "one dimension above 1",
    "no_weight_decay of the model",
}

TIMM_EVERY_DAY = {"vision_transformer", "swin_transformer", "levit", "nfnet", "mlp_mixer", "convnext", "beit"}
TRANSFORMERS_EVERY_DAY = {"bert", "gpt2", "t5", "swin", "mamba", "llama"}
TRANSFORMERS = """
albert bart beit bert bit bloom clip convnext convnextv2 cvt deberta-v2 deit detr dinov2 distilbert electra
falcon fnet gemma gpt2 gpt_neox hubert levit llama longformer mamba mamba2 mistral mixtral mobilevit mpnet
opt perceiver phi qwen2 reformer resnet roberta rwkv sam segformer swin swinv2 t5 vit vit_mae wav2vec2
whisper xlnet
"""
# what transformers' Trainer leaves out of its decay
PATTERNS = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def _cells(names: list[str], every_day: set[str]) -> list[object]:
    """Those of every day, and in the slow suite a quarter of the others, in turn."""
    others = part_of([name for name in names if name not in every_day], 4, turn())
    return [
        *(name for name in names if name in every_day),
        *(pytest.param(name, marks=pytest.mark.slow) for name in others),
    ]


def _disagree(net: torch.nn.Module, theirs: set[str]) -> tuple[set[str], dict[str, str]]:
    """What they leave out and we take, and what we leave out besides, with our rule."""
    rules = {s.name: why_not_selected(s) for s in named_parameters(net)}
    taken = {name for name, rule in rules.items() if not rule}
    more = {name: rule for name, rule in rules.items() if rule and name not in theirs}
    return taken & theirs, more


@pytest.mark.parametrize(
    "family", _cells([m for m in timm.list_modules() if timm.list_models(module=m)], TIMM_EVERY_DAY)
)
def test_timm(family: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(min(timm.list_models(module=family), key=len))
    said = set(net.no_weight_decay()) if hasattr(net, "no_weight_decay") else set()
    theirs = {n for n, p in net.named_parameters() if p.ndim <= 1 or n.endswith(".bias") or n in said}
    taken, more = _disagree(net, theirs)
    assert not taken
    assert set(more.values()) <= BEYOND, more
    if family in TIMM_EVERY_DAY:
        _computed_too(net)


def _computed_too(net: torch.nn.Module) -> None:
    """The selection stays the same where a layer computes its weight in one way or another."""
    found = named_parameters(net)
    before = {s.name: why_not_selected(s) for s in found}
    layers = [s.module for s in found if s.attribute == "weight" and not before[s.name] and not s.aliases[1:]]
    for apply, layer in zip((weight_norm, spectral_norm, Doubled.put), layers[1:4], strict=True):
        apply(layer)
    after = {s.name: why_not_selected(s) for s in named_parameters(net)}
    scales = [name for name, rule in after.items() if rule.startswith("scale of ")]
    assert len(scales) == 1
    assert {name: rule for name, rule in after.items() if name not in scales} == before


class Doubled(torch.nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight

    @staticmethod
    def put(layer: torch.nn.Module) -> None:
        parametrize.register_parametrization(layer, "weight", Doubled())


def small_transformer(family: str) -> torch.nn.Module:
    """One of transformers' networks with two layers, without weights."""
    config = transformers.CONFIG_MAPPING[family]()
    for size in (
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "encoder_layers",
        "decoder_layers",
        "n_layers",
    ):
        if isinstance(getattr(config, size, None), int):
            setattr(config, size, 2)
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config)  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", _cells(TRANSFORMERS.split(), TRANSFORMERS_EVERY_DAY))
def test_transformers(family: str) -> None:
    net = small_transformer(family)
    decayed = set(get_parameter_names(net, [torch.nn.LayerNorm], PATTERNS))
    theirs = {name for name, p in net.named_parameters() if name not in decayed or p.ndim <= 1}
    taken, more = _disagree(net, theirs)
    # the network that puts out Swin V2's biases has weights; their pattern goes by the name alone
    assert {name for name in taken if "continuous_position_bias_mlp" not in name} == set()
    left = {rule for rule in more.values() if not rule.startswith("scale of ")}  # of a weight norm
    assert left <= BEYOND, more
    if family in TRANSFORMERS_EVERY_DAY:
        _computed_too(net)
