"""A loop of one's own as a host of the engine: one optimizer, whose steps are counted here."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from lightning_reg.apply import Term
from lightning_reg.hosts.averages import AveragesKeepZeros
from lightning_reg.hosts.host import Host
from lightning_reg.hosts.watch import Silence
from lightning_reg.hosts.wrappers import bare_optimizer, check_reachable
from lightning_reg.select.parameters import named_parameters

__all__ = ["Loop", "check_held"]


class Loop(Host):
    """A loop of one's own: it has one optimizer, and counts its steps here."""

    def __init__(self, model: nn.Module, given: Optimizer) -> None:
        check_reachable(model, given)
        self.model, self.given = model, given
        self.optimizer = bare_optimizer(given)
        self.taken = 0
        self.silence: Silence | None = None
        self._averages: AveragesKeepZeros | None = None

    def check(self, term: Term, optimizer: Optimizer, said: bool) -> bool:
        """Look once more whether the optimizer holds the model's parameters, and has gradients to step."""
        # a strategy may have exchanged the parameters since
        check_reachable(self.model, self.given)
        check_held(term, optimizer)
        if not said and self.silence is not None and all(p.grad is None for p in term.trainable(optimizer)):
            self.silence.look()
            return False
        self.listen_no_more()
        return True

    def listen_no_more(self) -> None:
        """The optimizer has stepped, or nothing is attached any more."""
        if self.silence is not None:
            self.silence.end()
            self.silence = None

    def step(self) -> int:
        """Steps taken since it was attached."""
        return self.taken

    def optimizers(self) -> Iterable[Optimizer]:
        """The one."""
        return [self.optimizer]

    def keep_zeros(self, term: Term) -> None:
        """See to it that averages keep the zeros of a term that acts on weights."""
        self._averages = AveragesKeepZeros(term, lambda: [self.model], optimizers=[self.optimizer])

    def detached(self) -> None:
        """Leave averages alone."""
        if self._averages is not None:
            self._averages.remove()

    def stepped(self, optimizer: Optimizer) -> None:
        """Count the step."""
        self.taken += 1


def check_held(term: Term, optimizer: Optimizer) -> None:
    """Refuse an optimizer whose steps would penalize nothing."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    select = term.penalty.select
    selected = term.penalty.choose(named_parameters(term.module)) or term.selected
    if any(id(s.parameter) in held for s in selected):
        return
    name = type(optimizer).__name__
    if any(id(parameter) in held for parameter in term.module.parameters()):
        raise ValueError(
            f"select={select!r} names {selected[0].name}, and {name} holds none of what it names; give the "
            "optimizer that steps them, or another select="
        )
    raise ValueError(
        f"{name} holds no parameter of the model, so it steps another one, or was made before the "
        "parameters were exchanged; make it from this model's parameters()"
    )
