"""Which rates a forward really uses: the run's own forwards are watched, and nothing is run for it.

While a module is watched, each number that may be a rate is replaced by an equal one that knows where it
came from (:mod:`lightning_reg.dropout.watched`). A ``TorchFunctionMode`` sees every torch function that is
called. A number is a rate if it reaches a dropout, an attention or a draw, or if it is compared with what was
drawn.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
)

from lightning_reg.dropout.calls import draws_inside
from lightning_reg.dropout.compiled import compiled_modules
from lightning_reg.dropout.holders import Readers, tensors_named_drop
from lightning_reg.dropout.mode import Mode
from lightning_reg.dropout.seen import Seen
from lightning_reg.dropout.sites import DropoutSite, candidates
from lightning_reg.dropout.steering import observe, unobserve
from lightning_reg.dropout.watched import is_watched, plain, watched
from lightning_reg.select.wrappers import visible_modules

__all__ = ["Watch", "watch_of"]


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
        #: who steers by what is seen
        self.engines: list[Any] = []
        self.sites: list[DropoutSite] = []
        #: tensors of a few numbers that are named as rates are, and their names
        self.named_tensors: list[tuple[Tensor, str]] = []
        self.seen: dict[tuple[int, Any], Seen] = {}
        #: numbers that reached a torch function, and no draw
        self.elsewhere: set[tuple[int, Any]] = set()
        #: numbers whose owner takes no other
        self.refused: set[tuple[int, Any]] = set()
        #: names that were used in a way that does not tell whether they are rates
        self.doubtful: dict[str, str] = {}
        #: randomness that no rate steers, as sentences
        self.unsteered: list[str] = []
        #: the sites that somebody steers, and the rates wanted of them; None while it is the built one
        self.wanted: dict[tuple[int, Any], float | None] = {}
        #: whether a whole step was watched
        self.stepped = False
        #: how often the sites have changed, and whether modules have come since they were listed
        self.generation = -1
        self.dirty = False
        self._at = 0
        self._called: set[int] = set()
        self._calls: dict[int, int] = {}
        self._armed: list[nn.Module] = []
        self._depth = 0
        self._registration: Any = None
        self.rescan()

    def __deepcopy__(self, memo: object) -> None:
        return None  # a copy of a watched module is not watched

    def rescan(self) -> None:
        """List the sites anew, for modules, lists and configurations that have come or gone."""
        before = {site.key: site for site in self.sites}
        self.sites = [before.get(site.key, site) for site in candidates(self.root)]
        self.names = {id(m): path for path, m in reversed(list(visible_modules(self.root)))}
        for module in [m for m in self._armed if m is not self.root and id(m) not in self.names]:
            self._disarm(module)
        self._readers = Readers(self.root)
        self.named_tensors = list(tensors_named_drop(self.root))
        for path, module in visible_modules(self.root):
            if isinstance(module, torch.jit.ScriptModule) and _drops(module):
                self.doubtful[path] = "a script module that drops; steer it before it is scripted"
        self.generation += before.keys() != {site.key for site in self.sites} or self.generation < 0
        self.dirty = False

    def follow(self) -> None:
        """Notice, until :meth:`close`, the modules that are put into the root's."""
        if self._registration is None:
            noticed = weakref.WeakMethod(self._registered)

            def hook(module: nn.Module, name: str, child: nn.Module | None) -> None:
                if notice := noticed():
                    notice(module)

            self._registration = register_module_module_registration_hook(hook)
            weakref.finalize(self, self._registration.remove)

    def _registered(self, module: nn.Module) -> None:
        self.dirty = self.dirty or id(module) in self.names

    def open(self) -> list[DropoutSite]:
        """The sites that were not seen yet, of those that somebody steers."""
        return [s for s in self.sites if s.key not in self.seen and s.key in self.wanted]

    def overlooked(self, site: DropoutSite) -> bool:
        """Whether code that no watched forward has run reads this number, as far as can be told."""
        unclear = site.key in self.seen or site.key in self.elsewhere or site.name in self.doubtful
        if unclear or site.known or site.built == 0:
            return False
        path = self.names.get(id(site.module), "")
        parts = [part for part in site.name[len(path) :].strip(".").split(".") if not part.isdigit()]
        if len(parts) == 1:
            classes = [type(holder) for holder in site.holders]
            return any(self._readers.read(cls, parts[0]) for cls in classes)
        copied = any(other.known and other.built == site.built for other in self.sites)
        return not copied and self._readers.read_apart(parts[-1])

    def next_step(self) -> bool:
        """Count a whole step that comes, and say whether to watch it.

        The first is watched, and where code reads a number that no forward has used, some of those that
        follow: a batch may take another branch. Beside compiled modules only unknown numbers are watched.
        """
        self._at += 1
        if self.apart and all(site.known for site in self.open()):
            return False
        if not self.stepped:
            return True
        return _often(self._at) and any(map(self.overlooked, self.open()))

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
        """Watch the first forward of a module, and some more where code that has not run reads a number."""
        whole = module is self.root
        calls = self._calls[id(module)] = self._calls.get(id(module), 0) + 1
        if not _often(calls):
            yield
            return
        with self._watching(self.sites if whole else self.open(), whole):
            yield
        self._called.add(id(module))
        if not any(self.overlooked(s) for s in self.open() if whole or module in s.holders):
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
        if self._registration is not None:
            self._registration.remove()
            self._registration = None

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
                stack.enter_context(self._numbers(mode))
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

    @contextmanager
    def _numbers(self, mode: Mode) -> Iterator[None]:
        """Put the watched numbers in place, and afterwards the plain ones back."""
        placed: list[tuple[DropoutSite, Any, Any]] = []
        for i, site in enumerate(mode.sites):
            before, asked = site._read(), mode.asked(site)
            number = watched(before, i, mode, None if asked is None else site._raw(asked))
            if number is not None and site.takes(number) and site._read() is number:
                placed.append((site, before, number))
            else:
                self.refused.add(site.key)
        try:
            yield
        finally:
            for site, before, number in placed:
                if site._read() is number:  # unless the program wrote another
                    site._write(before)
            for store in (module.__dict__ for module in self.root.modules()):  # of modules that were made
                store.update({name: plain(value) for name, value in store.items() if is_watched(value)})


#: The watch of each module that is steered. A watch holds its module, so nothing here holds the watch.
_watches: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Watch]] = weakref.WeakKeyDictionary()


def watch_of(root: nn.Module) -> Watch:
    """Return the watch that all engines of ``root`` share."""
    known = _watches[root]() if root in _watches else None
    if known is None or not known.engines:
        known = Watch(root, compiled_modules(root))
        _watches[root] = weakref.ref(known)
    return known


def _often(count: int) -> bool:
    """The first eight, and then every power of two."""
    return count <= 8 or count & (count - 1) == 0


def _drops(module: torch.jit.ScriptModule) -> bool:
    try:
        return draws_inside(module)
    except RuntimeError:  # without a forward
        return False
