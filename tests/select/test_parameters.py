"""What a selection names, in modules as people build them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import L1
from lightning_reg.select.parameters import check_select, named_parameters, select_parameters


def names(module: nn.Module, select: Any = "weights") -> list[str]:
    return [selected.name for selected in select_parameters(module, select)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4))
        self.norm = nn.LayerNorm((4, 4))  # its weight has two dimensions
        self.head = nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.ones(()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.embedding.weight


def is_head(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    return name.startswith("head") and parameter.dim() == 2 and isinstance(module, nn.Linear)


# --- the five forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("weights", ["encoder.0.weight", "encoder.2.weight", "head.weight"]),
        ("head.*", ["head.weight", "head.bias"]),
        ("*.bias", ["encoder.0.bias", "encoder.1.bias", "encoder.2.bias", "norm.bias", "head.bias"]),
        ("encoder.?.weight", ["encoder.0.weight", "encoder.1.weight", "encoder.2.weight"]),
        ("encoder.[02].weight", ["encoder.0.weight", "encoder.2.weight"]),
        ("temperature", ["temperature"]),
        (nn.Linear, ["encoder.2.weight", "encoder.2.bias", "head.weight", "head.bias"]),
        (nn.modules.batchnorm._BatchNorm, ["encoder.1.weight", "encoder.1.bias"]),
        (is_head, ["head.weight"]),
        (lambda name, parameter, module: parameter.dim() == 0, ["temperature"]),
        (["head.bias", nn.Conv2d], ["encoder.0.weight", "encoder.0.bias", "head.bias"]),
        (("head.weight", is_head, "head.*"), ["head.weight", "head.bias"]),
        (["weights", "temperature"], ["temperature", "encoder.0.weight", "encoder.2.weight", "head.weight"]),
    ],
)
def test_each_form_and_lists_of_them(select: Any, expected: list[str]) -> None:
    assert names(Net(), select) == expected


def test_all_is_every_parameter_in_pytorchs_order() -> None:
    net = Net()
    assert names(net, "all") == [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (["weights", "!head.*"], ["encoder.0.weight", "encoder.2.weight"]),
        (["!head.*", "weights"], ["encoder.0.weight", "encoder.2.weight"]),
        ("!head.*", ["encoder.0.weight", "encoder.2.weight"]),  # taken out of the default
        (["!head.*", "!*.0.*"], ["encoder.2.weight"]),
        (["all", "!*.weight", "!*.bias"], ["temperature"]),
        (["*.weight", "!weights"], ["encoder.1.weight", "norm.weight"]),
        ([nn.Linear, "!*.bias"], ["encoder.2.weight", "head.weight"]),
    ],
)
def test_exclusions(select: Any, expected: list[str]) -> None:
    assert names(Net(), select) == expected


def test_globs_mind_case() -> None:
    with pytest.raises(ValueError, match="none of"):
        names(Net(), "HEAD.*")


def test_a_predicate_sees_name_parameter_and_owner() -> None:
    seen = []
    net = Net()
    select_parameters(net, lambda *given: seen.append(given) or True)
    by_name = {name: (parameter, module) for name, parameter, module in seen}
    assert by_name["head.bias"][0] is net.head.bias and by_name["head.bias"][1] is net.head
    assert by_name["temperature"][1] is net


def test_a_module_class_includes_what_is_deep_inside() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))

    net = nn.Sequential(nn.Linear(2, 2), Block())
    assert names(net, Block) == ["1.inner.0.weight", "1.inner.0.bias", "1.inner.1.weight", "1.inner.1.bias"]


# --- "weights" ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm((3, 2)),
        nn.GroupNorm(1, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.SyncBatchNorm(4),
        nn.LazyBatchNorm1d(),
        *([nn.RMSNorm((3, 2))] if hasattr(nn, "RMSNorm") else []),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_norm_layers_are_not_weights_however_many_dimensions(norm: nn.Module) -> None:
    assert names(nn.Sequential(nn.Linear(4, 4), norm)) == ["0.weight"]


def test_weights_under_other_names_count() -> None:
    attention = nn.MultiheadAttention(4, 2)
    assert names(attention) == ["in_proj_weight", "out_proj.weight"]
    assert "weight_ih_l0" in names(nn.LSTM(3, 4)) and "bias_ih_l0" not in names(nn.LSTM(3, 4))
    own = nn.Module()
    own.register_parameter("tokens", nn.Parameter(torch.ones(1, 2, 3)))
    assert names(own) == ["tokens"]


def test_a_parametrized_weight_has_the_layers_name_for_it() -> None:
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)))
    assert names(net) == ["0.weight"]
    assert names(net, "0.parametrizations.*") == ["0.weight"]
    assert names(net, nn.Linear) == ["0.weight", "0.bias"]


def test_lazy_layers_before_and_after_their_shape_is_known() -> None:
    net = nn.Sequential(nn.LazyLinear(3), nn.LazyConv1d(2, 1))
    assert names(net) == ["0.weight", "1.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net[0](torch.ones(2, 5))
    assert names(net) == ["0.weight", "1.weight"]


def test_frozen_parameters_stay_selected() -> None:
    net = Net().requires_grad_(False)
    assert names(net) == ["encoder.0.weight", "encoder.2.weight", "head.weight"]


# --- tied tensors ------------------------------------------------------------------------------------


def test_a_tied_tensor_is_there_once_with_both_names() -> None:
    (selected,) = select_parameters(Tied(), "all")
    assert selected.name == "embedding.weight"
    assert selected.aliases == ("embedding.weight", "decoder.weight")


@pytest.mark.parametrize(
    "select", ["embedding.*", "decoder.*", ["embedding.*", "decoder.*"], nn.Embedding, nn.Linear, "weights"]
)
def test_a_tied_tensor_is_found_under_either_name_and_module(select: Any) -> None:
    assert names(Tied(), select) == ["embedding.weight"]


@pytest.mark.parametrize("select", [["all", "!embedding.*"], ["all", "!decoder.*"]])
def test_a_tied_tensor_is_taken_out_under_either_name(select: Any) -> None:
    net = Tied()
    net.extra = nn.Linear(2, 2, bias=False)
    assert names(net, select) == ["extra.weight"]


def test_a_shared_module_counts_once() -> None:
    layer = nn.Linear(2, 2)
    net = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    assert names(net, "b.0.*") == ["a.weight", "a.bias"]
    assert L1(1.0, select="all")(net) == L1(1.0, select="all")(layer)


def test_a_module_that_holds_an_ancestor_ends() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    object.__setattr__(net, "_modules", {**net._modules, "me": net})
    assert names(net) == ["0.weight"]


# --- wrappers ----------------------------------------------------------------------------------------


def test_the_prefix_of_torch_compile_is_invisible() -> None:
    net = nn.Sequential(Net(), nn.Linear(2, 2))
    net[0] = torch.compile(net[0], backend="eager")
    assert any("_orig_mod" in name for name, _ in net.named_parameters())
    assert names(net, "0.head.*") == ["0.head.weight", "0.head.bias"]
    assert names(torch.compile(Net(), backend="eager"), "head.weight") == ["head.weight"]


def test_the_prefix_of_data_parallel_is_invisible() -> None:
    wrapped = nn.DataParallel(Net())
    assert names(wrapped) == names(Net())
    assert names(torch.compile(wrapped, backend="eager"), "head.weight") == ["head.weight"]


def test_the_prefix_of_distributed_data_parallel_is_invisible() -> None:
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:  # without a process group
            nn.Module.__init__(self)
            self.module = module

    assert names(Wrapped(Net())) == names(Net())


def test_the_prefixes_of_checkpointing_and_fsdp_are_invisible() -> None:
    for prefix in ("_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
        outer, inner = nn.Module(), nn.Module()
        inner.add_module(prefix, nn.Linear(2, 2))
        outer.add_module("layer", inner)
        assert names(outer, "layer.weight") == ["layer.weight"]


def test_a_child_that_happens_to_be_called_module_keeps_its_name() -> None:
    net = nn.Module()
    net.add_module("module", nn.Linear(2, 2))
    assert names(net) == ["module.weight"]


def test_the_owner_is_the_module_that_holds_the_attribute() -> None:
    for selected in named_parameters(Net()):
        assert getattr(selected.module, selected.attribute) is selected.parameter


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "hint"),
    [
        ("head.wieght", "did you mean .*head.weight"),
        ("weight", "did you mean weights"),
        ("encoder", r"did you mean encoder\.\*, "),
        ("encoder.0.weights", "encoder.0.weight"),
        (["!encodr.0.weight", "hed.bias"], "head.bias"),
        ("zzzz", "it has temperature, encoder.0.weight"),
        (nn.LSTM, "it has temperature"),
    ],
)
def test_matching_nothing_names_near_misses(select: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"matches none of the 11 parameters of Net; .*{hint}"):
        select_parameters(Net(), select)


def test_a_long_list_of_names_is_cut() -> None:
    with pytest.raises(ValueError, match=r"and 5 more"):
        select_parameters(Net(), "zzzz")


def test_a_module_without_parameters_says_so() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        select_parameters(nn.ReLU(), "all")


@pytest.mark.parametrize("select", ["", "!", [], (), ["weights", ""]])
def test_empty_selections_are_refused(select: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        check_select(select)


@pytest.mark.parametrize("select", [3, None, int, ["weights", 3], torch.ones(2), nn.Linear(2, 2), b"weights"])
def test_other_kinds_are_refused(select: Any) -> None:
    with pytest.raises(TypeError, match="module class"):
        check_select(select)


@pytest.mark.parametrize(("select", "error"), [(3, TypeError), ("", ValueError), (int, TypeError)])
def test_a_penalty_refuses_them_at_construction(select: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="select"):
        L1(1.0, select=select)
