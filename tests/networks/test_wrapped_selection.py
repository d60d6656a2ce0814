"""The default selection of a network stays what it was under what people wrap networks in (on meta)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_reg import L1
from lightning_reg.apply import Term
from lightning_reg.select.parameters import named_parameters, why_not_selected
from tests.networks.test_default_selection import TIMM_EVERY_DAY, TRANSFORMERS_EVERY_DAY, small_transformer

pytestmark = pytest.mark.filterwarnings("ignore")

#: Half of them in turn.
FAMILIES = [
    pytest.param(family, marks=pytest.mark.turns(2, i % 2))
    for i, family in enumerate(sorted(TIMM_EVERY_DAY | TRANSFORMERS_EVERY_DAY))
]


def network(family: str) -> nn.Module:
    with torch.device("meta"):
        if family in TIMM_EVERY_DAY:
            return timm.create_model(min(timm.list_models(module=family), key=len))
        return small_transformer(family)


def rules(net: nn.Module) -> dict[str, str]:
    return {s.name: why_not_selected(s) for s in named_parameters(net)}


def replace(net: nn.Module, by: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Put ``by`` of each linear layer in its place."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, by(child))
    return net


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_and_scripted_children(family: str) -> None:
    before = rules(network(family))
    assert rules(replace(network(family), torch.compile)) == before
    assert rules(replace(network(family), torch.jit.script)) == before
    assert rules(torch.compile(network(family))) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_moving_average_beside_it(family: str) -> None:
    net = network(family)
    before = [s.name for s in Term(L1(1.0), net).selected]
    both = nn.ModuleDict({"live": net})
    both["ema"] = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    both["teacher"] = copy.deepcopy(net).requires_grad_(False)
    term = Term(L1(1.0), both)
    assert [term.name_of(parameter) for parameter in term.trained()] == [f"live.{name}" for name in before]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_low_rank_over_a_frozen_or_quantized_base(family: str) -> None:
    peft = pytest.importorskip("peft")
    net = network(family)
    linear = [name for name, module in net.named_modules() if type(module) is nn.Linear]
    targets = [name for name in linear if family != "mamba" or not name.endswith("out_proj")]  # refused there
    if not targets:
        pytest.skip("it has no linear layer")
    adapted = peft.LoraModel(net, peft.LoraConfig(r=2, target_modules=targets), "default")
    for module in adapted.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    term = Term(L1(1.0), adapted)
    factors = {f"{name}.lora_{factor}.default.weight" for name in targets for factor in "AB"}
    assert {term.name_of(p).removeprefix("model.") for p in term.trained()} == factors


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_layers(family: str) -> None:
    net = network(family)
    before = rules(net)
    for module in list(net.modules()):
        if type(module) is nn.Linear:
            prune.identity(module, "weight")  # type: ignore[no-untyped-call]
    assert rules(net) == before
