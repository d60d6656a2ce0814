"""Script functions, whose insides no mode sees: which of their arguments are rates, by their graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_reg.dropout.calls import CHANCES, DECISIONS, UNIFORM, draws_inside, kind_of

__all__ = ["rates_of_script", "seen_calls"]


@contextmanager
def seen_calls(seen: Callable[..., Any]) -> Iterator[None]:
    """Have ``seen(call, function, args, kwargs)`` in the place of each call of a script that draws."""
    cls: Any = torch.jit.ScriptFunction
    call = cls.__call__

    def instead(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not draws_inside(function):
            return call(function, *args, **kwargs)
        return seen(call, function, args, kwargs)

    cls.__call__ = instead
    try:
        yield
    finally:
        cls.__call__ = call


def rates_of_script(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments from which the rate of a dropout, or of a draw inside, is computed."""
    graph = function.inlined_graph
    inputs = [value.debugName() for value in graph.inputs()]
    names = [argument.name for argument in function.schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    rates: set[str] = set()
    for kind in _kinds_inside(graph):
        name = kind.removeprefix("aten::")
        for node in graph.findAllNodes(kind, True):
            sources = [_sources(value) for value in node.inputs()]
            if kind_of(name) is not None or name in CHANCES:
                rates.update(*(found for found, _ in sources[1:2]))
            elif name in DECISIONS and any(drawn for _, drawn in sources):
                rates.update(*(found for found, drawn in sources))
    return [
        given[name] for value, name in zip(inputs, names, strict=True) if value in rates and name in given
    ]


def _kinds_inside(graph: Any) -> list[str]:
    text = str(graph)
    names = [*CHANCES, *DECISIONS, "dropout", "dropout_", "feature_dropout", "alpha_dropout"]
    return [f"aten::{name}" for name in names if f"aten::{name}(" in text]


def _sources(value: Any) -> tuple[set[str], bool]:
    """The inputs of the graph that a value is computed from, and whether it is made of a uniform draw."""
    node = value.node()
    if node.kind() == "prim::Param":
        return {value.debugName()}, False
    if node.kind().removeprefix("aten::") in UNIFORM:  # of its arguments it takes a shape
        return set(), True
    found: set[str] = set()
    drawn = False
    for one in node.inputs():
        names, noise = _sources(one)
        found |= names
        drawn = drawn or noise
    return found, drawn
