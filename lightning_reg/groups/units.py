"""Groups that are units: all that must be zero for a filter, a neuron or a head to do nothing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_reg.groups.coupled import align
from lightning_reg.groups.forms import layout_of
from lightning_reg.groups.layout import Layout, Slices
from lightning_reg.groups.probing import constant_at, inputs_of, probes_of
from lightning_reg.groups.tracing import (
    dependency_graph,
    traceable_copy,
    unit_count,
    unit_members,
)
from lightning_reg.groups.unit_sets import UnitSet, is_stream, rms_norms, unit_set
from lightning_reg.select.parameters import Select, Selected, matches, named_parameters
from lightning_reg.tensors.shards import is_sharded

__all__ = ["UnitSet", "Units", "head_sets"]

_CONV = nn.modules.conv._ConvNd

#: Layers that read the units of a set, and which unit, or −1, each of their channels is.
Readers = list[tuple[nn.Module, Tensor]]


@dataclass(frozen=True, eq=False)
class Units:
    """Groups are units, found by following one forward: ``groups="units"`` is ``groups=Units()``.

    A unit is a row of a linear layer or a filter of a convolution, its bias, the scale and shift of the batch
    normalization behind it, the filter of a depthwise convolution that reads it, and the same of every layer
    that a residual sum joins to it. A unit of zeros puts out zeros, so that
    :func:`~lightning_reg.compact` cuts it. In attention layers a unit is a head: its rows of the query, key
    and value projections; where several heads share keys and values, all of these.

    With ``stream=True`` the channels of a transformer's residual stream are units as well: a column of its
    embeddings and of its table of positions, and a row of every layer that adds to the stream. The stream may
    be read through RMSNorm, which passes on zeros, and whose mean :func:`~lightning_reg.compact` corrects for
    the channels that it cuts. A LayerNorm is refused by name: its mean and variance are of all channels, and
    zeros are not what it makes of a channel of zeros.

    Outputs of the model are no units, nor is what a layer normalization, a grouped convolution, a recurrent
    layer or a tensor outside the layers depends on (the residual stream of a transformer), nor what is mixed
    with other units before a layer reads it (by a softmax, or a gate of the other half of a tensor): no part
    of it could be cut. Where nothing is left, the network is refused.

    They are found while the model is whole: under FSDP2 and tensor parallelism a callback does so before
    ``configure_model``; elsewhere call :meth:`find` before the model is shared out.

    Args:
        example: what ``forward`` takes, a tensor, a tuple of arguments or a dict of them by name. Where None,
            the model's own ``example_input_array`` (Lightning's) or ``dummy_inputs`` (transformers').
        stream: whether channels of the residual stream are units.

    Raises:
        ImportError: ``torch-pruning`` is not installed.
        ValueError: there is no example, the model rejects it, or it has no units or not the stream asked for.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> [sorted(one) for one in Units(torch.zeros(1, 1, 8, 8)).find(net)]
    [['0.bias', '0.weight', '1.bias', '1.weight']]

    References:
        Fang et al., *DepGraph: Towards Any Structural Pruning*, CVPR 2023.
    """

    example: Any = None
    stream: bool = False

    def __repr__(self) -> str:
        """Show the shapes of the example."""
        shown = tree_map(lambda one: tuple(one.shape) if isinstance(one, Tensor) else one, self.example)
        given = [f"example={shown!r}"] if self.example is not None else []
        return f"Units({', '.join([*given, *(['stream=True'] if self.stream else [])])})"

    def find(self, model: nn.Module) -> list[UnitSet]:
        """Return the sets of parameters of ``model`` that share units, each with its layout.

        Those of a model that processes have shared out since are what they were before, when it was whole.

        Raises:
            ValueError: no example, one that the model rejects, or a model that was never seen whole.
        """
        found = _FOUND.get(model)
        if found is None or not found.fit(model, self):
            found = _Found(_identities(model), _shapes(model), self.example, self.stream, self._find(model))
            _FOUND[model] = found
        return found.sets

    def choose(self, parameters: Sequence[Selected], select: Select) -> list[Selected]:
        """Return the parameters of units whose weights ``select`` takes; all units where it is not given.

        Raises:
            ValueError: no unit's, or a part only of what goes together.
        """
        names: set[str] = set()
        by_name = {alias: s for s in parameters for alias in s.aliases}
        for forms in self.find(_root(parameters)):
            weights = [n for n in forms if n in by_name and by_name[n].parameter.dim() > 1]
            taken = [n for n in weights if select == "weights" or matches(by_name[n], select)]
            if taken and len(taken) < len(weights):
                left = min(set(weights) - set(taken))
                raise ValueError(
                    f"groups='units': {taken[0]} is cut together with {left}, which select={select!r} leaves "
                    "out; select both, or neither"
                )
            names.update(forms if taken else ())
        chosen = [s for s in parameters if not names.isdisjoint(s.aliases)]
        if not chosen:
            raise ValueError(
                f"groups='units' finds no units in {type(_root(parameters)).__name__} that "
                f"select={select!r} takes; write the groups by hand with Coupled"
            )
        return chosen

    def resolve(self, selected: Sequence[Selected]) -> list[list[tuple[Selected, Layout]]]:
        """Return each set's tensors, with layouts of as many groups."""
        by_name = {alias: s for s in selected for alias in s.aliases}
        sets = []
        for forms in self.find(_root(selected)):
            members = [(by_name[name], layout) for name, layout in forms.items() if name in by_name]
            if members:
                sets.append(members)
        return sets

    def _find(self, model: nn.Module) -> list[UnitSet]:
        asker = "groups='units'"
        twin = traceable_copy(model, asker)
        example = _on_device(self._example_of(model), twin)
        graph = dependency_graph(twin, example, asker)
        names = {id(module): name for name, module in twin.named_modules()}
        names |= {id(s.parameter): s.name for s in named_parameters(twin)}
        heads = head_sets(named_parameters(twin))
        sets: list[UnitSet] = []
        read: list[Readers] = []
        taken = {name for forms in heads for name in forms}
        norms = rms_norms(twin) if self.stream else None
        streams: list[UnitSet] = []
        for layer in twin.modules():
            if not (_has_units(layer) or (self.stream and isinstance(layer, nn.Embedding))):
                continue
            if layer not in graph.module2node:
                continue
            if names.get(id(layer.weight), "") in ("", *taken):  # computed, or of another set
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of what the package cannot follow to its end
                    members = unit_members(graph, layer, unit_count(layer))
            except Exception:  # the package does not follow these, as behind a GRU
                continue
            found = unit_set(members, names, unit_count(layer), norms)
            if found and is_stream(members, norms):
                streams.append(found)
            if found and taken.isdisjoint(found):
                sets.append(found)
                read.append([(m, of) for m, handler, of in members if handler == "prune_in_channels"])
                taken.update(found)
        silent = _silent(twin, probes_of(twin, example, asker), sets, read)
        if self.stream and not any(one is found for one in silent for found in streams):
            raise ValueError(
                f"Units(stream=True) finds no residual stream in {type(model).__name__}: no embedding whose "
                "columns linear layers alone read, be it behind RMSNorm (a LayerNorm of any make needs all "
                "of them); leave stream out"
            )
        return silent + heads

    def _example_of(self, model: nn.Module) -> Any:
        for example in (self.example, *(getattr(model, n, None) for n in _EXAMPLES)):
            if example is not None:
                return example
        raise ValueError(
            f"groups='units' follows one forward and {type(model).__name__} has no example; set its "
            "example_input_array, or give groups=Units(example)"
        )


_EXAMPLES = ("example_input_array", "dummy_inputs")


class _Found(NamedTuple):
    """The units of a model, as it was when they were found."""

    identities: list[int]
    shapes: list[tuple[str, torch.Size]]
    example: Any
    stream: bool
    sets: list[UnitSet]

    def fit(self, model: nn.Module, units: Units) -> bool:
        """Whether they are still its own; of a model in parts the tensors are others than of the whole."""
        if self.example is not units.example or self.stream != units.stream:
            return False
        if self.identities == _identities(model):
            return True
        return any(map(is_sharded, model.parameters())) and self.shapes == _shapes(model)


# what was found for a model
_FOUND: WeakKeyDictionary[nn.Module, _Found] = WeakKeyDictionary()


def _identities(model: nn.Module) -> list[int]:
    return [id(parameter) for parameter in model.parameters()]


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(s.name, s.parameter.shape) for s in named_parameters(model)]


def _root(parameters: Sequence[Selected]) -> nn.Module:
    return parameters[0].containers[0]


def _on_device(example: Any, model: nn.Module) -> Any:
    """The example in few samples, where the model is, and in its precision."""
    like = next(p for p in model.parameters() if p.is_floating_point())

    def moved(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        return one.to(like) if one.is_floating_point() else one.to(like.device)

    return tree_map(moved, example)


def _has_units(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, _CONV) and layer.groups == 1)


@torch.no_grad()
def _silent(
    model: nn.Module, probes: Sequence[Any], sets: list[UnitSet], read: list[Readers]
) -> list[UnitSet]:
    """The sets whose units, once zero, put out a constant where it is thought that they are read.

    Others go through what the package does not see: a softmax, a mean over units, a gated linear unit.

    Args:
        model: a copy, spoilt by this: every other unit becomes zero.
        probes: what it takes.
        sets: units.
        read: what reads each set.
    """
    by_name = {alias: s.parameter for s in named_parameters(model) for alias in s.aliases}
    for forms in sets:
        for name, layout in forms.items():
            view = layout.view(by_name[name])
            view.mul_(layout.spread(torch.arange(layout.count, device=view.device) % 2 == 1, view))
    seen = inputs_of(model, probes)
    return [
        forms
        for forms, readers in zip(sets, read, strict=True)
        if all(
            constant_at(seen[module], places) is not None
            for module, of in readers
            if module in seen and (places := ((of >= 0) & (of % 2 == 0)).nonzero().flatten().tolist())
        )
    ]


def head_sets(parameters: Sequence[Selected]) -> list[UnitSet]:
    """Return the heads of every attention layer: rows of its query, key and value projections."""
    around: dict[int, list[tuple[Selected, Layout]]] = {}
    for s in parameters:
        try:
            layout = layout_of(s, "heads")
        except ValueError:
            continue
        if isinstance(layout, Slices) and layout.keep == (1,):  # and not columns, of the output's projection
            owner = s.module if isinstance(s.module, nn.MultiheadAttention) else s.containers[-2]
            around.setdefault(id(owner), []).append((s, layout))
    return [{s.name: layout for s, layout in align(members)} for members in around.values()]
