"""Which rates a forward really uses: the run's own forwards are watched, and nothing is run for it.

While a module is watched, each number that may be a rate is replaced by an equal one that knows where it
came from (:mod:`lightning_reg.dropout.watched`). A ``TorchFunctionMode`` sees every torch function that is
called. A number is a rate if it reaches a dropout, an attention or a draw, or if it is compared with what was
drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lightning_reg.dropout.mode import Mode
from lightning_reg.dropout.seen import Seen
from lightning_reg.dropout.sites import DropoutSite, candidates
from lightning_reg.dropout.steering import observe, unobserve
from lightning_reg.select.wrappers import visible_modules

__all__ = ["Watch"]


class Watch:
    """Watches the forwards of ``root`` until every rate was seen to act, or its owner has been called.

    Args:
        root: the module.
        apart: identities of modules that run compiled, where nothing is watched.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    >>> watch = Watch(net)
    >>> with watch.step():
    ...     _ = net(torch.ones(3, 2))
    >>> [(site.name, watch.seen[site.key].kind) for site in watch.sites]
    [('1.p', 'element')]
    """

    def __init__(self, root: nn.Module, apart: frozenset[int] = frozenset()) -> None:
        self.root = root
        self.apart = apart
        self.sites = candidates(root)
        self.tensors = dict(_tensors_named_drop(root))
        self.seen: dict[tuple[int, Any], Seen] = {}
        #: names that were used in a way that does not tell whether they are rates
        self.doubtful: dict[str, str] = {}
        #: randomness that no rate steers, as sentences
        self.unsteered: list[str] = []
        self.names = {id(m): path for path, m in reversed(list(visible_modules(root)))}
        #: the sites that somebody steers, and the rates wanted of them; None while it is the built one
        self.wanted: dict[tuple[int, Any], float | None] = {}
        #: whether a whole step was watched
        self.stepped = False
        self._called: set[int] = set()
        self._armed: list[nn.Module] = []
        self._depth = 0

    def __deepcopy__(self, memo: object) -> None:
        return None  # a copy of a watched module is not watched

    def open(self) -> list[DropoutSite]:
        """The sites that were not seen yet, of those that somebody steers."""
        return [s for s in self.sites if s.key not in self.seen and s.key in self.wanted]

    @property
    def due(self) -> bool:
        """Whether the next whole step needs watching: beside compiled modules only for unknown numbers."""
        return not self.stepped and (not self.apart or any(not s.known for s in self.open()))

    def again(self) -> None:
        """Watch a whole step once more, if there are numbers that were not seen to be rates."""
        if not self.apart and any(not s.known for s in self.open()):
            self.stepped = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Watch a whole step, or a forward of the root; then wait for the modules that were not called."""
        with self._watching(self.sites, True):
            yield
        self.stepped = True
        self._called.add(id(self.root))
        self.arm()

    @contextmanager
    def forward(self, module: nn.Module) -> Iterator[None]:
        """Watch one forward of a module that was not called before."""
        whole = module is self.root
        with self._watching(self.sites if whole else self.open(), whole):
            yield
        self._called.add(id(module))
        self._disarm(module)

    def arm(self, root: bool = False) -> None:
        """Watch the first forward of each module that holds an unseen site and was not called yet."""
        holders = [holder for site in self.open() for holder in site.holders]
        for holder in [*([self.root] if root else []), *holders]:
            if id(holder) in self._called or (holder is self.root and not root):
                continue
            if any(id(m) in self.apart for m in holder.modules()) or any(holder is m for m in self._armed):
                continue
            observe(holder, self.forward)
            self._armed.append(holder)

    def close(self) -> None:
        """Watch nothing any more."""
        for module in list(self._armed):
            self._disarm(module)

    def _disarm(self, module: nn.Module) -> None:
        self._armed = [armed for armed in self._armed if armed is not module]
        unobserve(module)

    @contextmanager
    def _watching(self, sites: list[DropoutSite], whole: bool) -> Iterator[None]:
        if self._depth or (not sites and not whole):
            yield
            return
        mode = Mode(
            self, [s for s in sites if not any(id(h) in self.apart for h in s.holders) or not s.known]
        )
        self._depth += 1
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(mode.numbers())
                stack.enter_context(mode.scripts())
                if whole:
                    hook = register_module_forward_pre_hook(lambda m, args: self._called.add(id(m)))
                    stack.callback(hook.remove)
                stack.enter_context(mode)
                yield
        finally:
            self._depth -= 1
        if whole:
            mode.report()


def _tensors_named_drop(root: nn.Module) -> Iterator[tuple[int, str]]:
    for path, module in visible_modules(root):
        for store in (module.__dict__, module._buffers, module._parameters):
            for name, value in store.items():
                if isinstance(value, Tensor) and "drop" in name.lower() and value.numel() == 1:
                    yield id(value), f"{path}.{name}" if path else name
