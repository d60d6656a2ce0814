"""Run a forward and leave no trace of it: random state, buffers, gradients, attributes and modes."""

from __future__ import annotations

import itertools
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["eager", "shapeless", "training_modes", "undisturbed"]

_STORES = frozenset({"_parameters", "_buffers", "_modules"})


def shapeless(module: nn.Module) -> list[str]:
    """The names of lazy parameters and buffers, to which the next forward gives shapes for good."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return [name for name, tensor in tensors if is_lazy(tensor)]


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put back, on leaving, all that a forward of ``module`` may change.

    These are torch's, Python's and numpy's random state; buffers and gradients; every module's own
    attributes, the contents of its lists, deques, dicts and sets, its hooks and its plain tensors included;
    training modes.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices()))
        python = random.getstate()
        numpy = sys.modules.get("numpy")
        drawn = numpy.random.get_state() if numpy is not None else None
        modules = list(module.modules())
        saved = [(m, _Attributes(m)) for m in modules]
        gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]
        try:
            yield
        finally:
            for m, attributes in saved:
                attributes.restore(m)
            for parameter, gradient, value in gradients:
                if gradient is not None and value is not None:
                    with torch.no_grad():
                        gradient.copy_(value)
                parameter.grad = gradient
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(drawn)


@contextmanager
def training_modes(module: nn.Module) -> Iterator[None]:
    """Put ``module`` in training mode, but for normalization layers, which need batches of two or more."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in modes:
            if not isinstance(m, nn.modules.batchnorm._NormBase):
                m.training = True
        yield
    finally:
        for m, training in modes:
            m.training = training


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """Run what is compiled without its compiled form."""
    if hasattr(torch.compiler, "set_stance"):  # torch 2.6
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    compiled = [m for m in module.modules() if m.__dict__.get("_compiled_call_impl") is not None]
    calls = [m._compiled_call_impl for m in compiled]
    outer = [m for m in module.modules() if "_orig_mod" in m._modules]
    forwards = [m.forward for m in outer]
    try:
        for m in compiled:
            m._compiled_call_impl = None
        for m in outer:
            m.__dict__["forward"] = m._modules["_orig_mod"]
        yield
    finally:
        for m, call in zip(compiled, calls, strict=True):
            m._compiled_call_impl = call
        for m, forward in zip(outer, forwards, strict=True):
            m.__dict__["forward"] = forward


class _Attributes:
    """A module's ``__dict__`` as it was, the contents of its containers and tensors included."""

    def __init__(self, module: nn.Module) -> None:
        self.entries = {name: value for name, value in module.__dict__.items() if name not in _STORES}
        self.contents = [(v, _copied(v)) for v in self.entries.values() if _is_mutable(v)]
        self.buffers = dict(module._buffers)
        self.values = [(b, b.detach().clone()) for b in self.buffers.values() if b is not None]

    def restore(self, module: nn.Module) -> None:
        for name in [n for n in module.__dict__ if n not in self.entries and n not in _STORES]:
            del module.__dict__[name]
        module.__dict__.update(self.entries)
        for value, content in self.contents:
            _put_back(value, content)
        module._buffers.clear()
        module._buffers.update(self.buffers)
        for buffer, value in self.values:
            _put_back(buffer, value)


def _is_mutable(value: object) -> bool:
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    return type(value) in (list, dict, set, deque, OrderedDict) or _is_generator(value)


def _is_generator(value: object) -> bool:
    """Whether a module draws from a generator of its own."""
    numpy = sys.modules.get("numpy")
    kinds = () if numpy is None else (numpy.random.Generator, numpy.random.RandomState)
    return isinstance(value, (torch.Generator, random.Random, *kinds))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if hasattr(value, "bit_generator"):
        return value.bit_generator.state
    return value.get_state() if _is_generator(value) else value.copy()


def _put_back(value: Any, content: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(content)
    elif isinstance(value, random.Random):
        value.setstate(content)
    elif hasattr(value, "bit_generator"):
        value.bit_generator.state = content
    elif _is_generator(value):
        value.set_state(content)
    elif isinstance(value, Tensor):
        with torch.no_grad():
            if value.shape != content.shape:
                value.resize_(content.shape)
            value.copy_(content)
    elif isinstance(value, (list, deque)):
        value.clear()
        value.extend(content)
    else:
        value.clear()
        value.update(content)


def _cuda_devices() -> list[int]:
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if initialized else []
