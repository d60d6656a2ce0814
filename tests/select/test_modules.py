"""Which modules a selection names, wrapped or not; the same grammar for parameters, modules and sites."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import L1, ActivityPenalty
from lightning_reg.dropout.inject import modules_after
from lightning_reg.dropout.selection import select_sites
from lightning_reg.dropout.sites import candidates
from lightning_reg.select.modules import select_modules
from lightning_reg.select.parameters import select_parameters
from lightning_reg.select.wrappers import places, unwrapped, visible_modules


def _net() -> nn.Module:
    encoder = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.1))
    return nn.ModuleDict({"enc": encoder, "head": nn.Linear(2, 1)})


class _FabricLike(nn.Module):
    """Holds the user's module as Fabric's wrapper does, twice."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module
        self._original_module = module


def _compiled_encoder(net: Any) -> nn.Module:
    net["enc"] = torch.compile(net["enc"], backend="eager")
    return net


WRAPPED = [
    lambda net: net,
    lambda net: torch.compile(net, backend="eager"),
    _compiled_encoder,
    _FabricLike,
    lambda net: _FabricLike(torch.compile(net, backend="eager")),
    nn.DataParallel,
]


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrappers_are_invisible_in_all_three_kinds_of_names(wrap: Any) -> None:
    net = wrap(_net())
    assert [name for name, _ in visible_modules(net)] == ["", "enc", "enc.0", "enc.1", "enc.2", "head"]
    assert [one.name for one in select_modules(net, "enc.1")] == ["enc.1"]
    assert [name for name, _ in modules_after(net, "enc.1")] == ["enc.1"]
    assert [one.name for one in select_parameters(net, "enc.*")] == ["enc.0.weight", "enc.0.bias"]
    assert [site.name for site in select_sites(net, candidates(net), "enc.2")] == ["enc.2.p"]
    assert type(unwrapped(net)) is nn.ModuleDict


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("enc.*", ["enc.0", "enc.1", "enc.2"]),
        (["*", "!enc.0"], ["enc", "enc.1", "enc.2", "head"]),
        (["!enc.0", "*"], ["enc", "enc.1", "enc.2", "head"]),
        (["!enc.*"], ["enc", "head"]),
        ([nn.Linear, "!head"], ["enc.0"]),
        (lambda name, module: name.endswith("2"), ["enc.2"]),
        ({"head"}, ["head"]),
    ],
)
def test_one_grammar_for_calls_and_for_dropout_after(select: Any, expected: list[str]) -> None:
    net = _net()
    assert [one.name for one in select_modules(net, select)] == expected
    assert [name for name, _ in modules_after(net, select)] == expected


def test_the_root_is_named_by_nothing_its_class_or_a_predicate_and_nothing_is_dropped_after_it() -> None:
    net = nn.Sequential(nn.Sequential(nn.ReLU()))
    assert [one.module for one in select_modules(net, "")] == [net]
    assert [one.name for one in select_modules(net, nn.Sequential)] == ["", "0"]
    assert [one.name for one in select_modules(net, ["", "*"])] == ["", "0", "0.0"]
    assert [name for name, _ in modules_after(net, nn.Sequential)] == ["0"]
    with pytest.raises(ValueError, match="after='' has an empty pattern"):
        modules_after(net, "")


def test_a_module_in_two_places_has_two_names_and_counts_once() -> None:
    shared = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": shared, "b": shared})
    (chosen,) = select_modules(net, "b")
    assert chosen.names == ("a", "b")
    with pytest.raises(ValueError, match="matches none"):
        select_modules(net, ["b", "!a"])  # either name takes it out


def test_near_misses_and_kinds() -> None:
    with pytest.raises(ValueError, match=r"'enk' matches none of the 5 modules of ModuleDict; did .*enc"):
        select_modules(_net(), "enk")
    with pytest.raises(TypeError, match=r"modules=3 is not understood; use a glob over names of modules"):
        select_modules(_net(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="modules=int is not understood: it is not a module class"):
        select_modules(_net(), [int])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"modules=\[\] is empty"):
        select_modules(_net(), [])
    with pytest.raises(ValueError, match="matches nothing: ReLU has no modules"):
        modules_after(nn.ReLU(), "*")


def test_a_wrapper_is_called_in_place_of_what_it_wraps() -> None:
    net = _compiled_encoder(_net())
    (encoder,) = select_modules(net, "enc")
    assert encoder.outer is net["enc"] and encoder.module is net["enc"]._orig_mod  # type: ignore[index]
    (inside,) = select_modules(net, "enc.1")
    assert inside.outer is inside.module
    assert [place.wraps for place in places(net)] == [False, True, False, False, False, False, False]


@pytest.mark.parametrize("modules", ["enc", "enc.1"])
def test_calls_in_a_compiled_module_are_penalized(modules: str) -> None:
    torch.compiler.reset()  # compiled code does not notice hooks that are added later
    net = nn.ModuleDict({"enc": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
    net["enc"] = torch.compile(net["enc"], backend="eager")
    x = torch.randn(5, 2)
    with ActivityPenalty(L1(1.0), modules=modules).record(net) as term:
        out = net["enc"](x)
        torch.testing.assert_close(term.value(), out.abs().sum() / 5)
