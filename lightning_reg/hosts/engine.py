"""The one engine: a penalty or a constraint at work, whatever the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg.apply import (
    Apply,
    DualAveraging,
    Metric,
    Term,
    add_gradient_,
    check_apply,
    check_dual_averaging,
    check_optimizer,
    decay_,
    decay_where_agreed_,
    look_before_,
    make_averages_,
    project_,
    prox_,
)
from lightning_reg.apply.decoupled import Awaited
from lightning_reg.apply.term import found_inf
from lightning_reg.apply.together import warn_of_sums
from lightning_reg.apply.warm_up import warm_up
from lightning_reg.hosts.host import Host
from lightning_reg.hosts.own_gradients import OwnGradients
from lightning_reg.hosts.step_hooks import StepHooks
from lightning_reg.hosts.watch import Undone
from lightning_reg.hosts.wrappers import runs_hooks
from lightning_reg.penalties.regularizer import Regularizer
from lightning_reg.schedules.base import check_schedule
from lightning_reg.tensors.grad_mode import without_grad

__all__ = ["Engine"]


class _Hooked(NamedTuple):
    """An optimizer whose steps count."""

    optimizer: Optimizer
    inside: bool  # whether what comes before its update is done in its step
    hooks: StepHooks | None  # where something is done in its steps or after them


class Engine:
    """A penalty or a constraint at work on one module, in one of the four ways.

    Every way in makes one, tells it the host, and calls :meth:`hook` for each optimizer. A host that calls
    its callbacks before a step calls :meth:`announce`; the rest happens in the optimizer's own hooks, in
    :meth:`before_step` and :meth:`after_step`. For ``apply="loss"`` it adds :meth:`loss_term` to the loss.

    Args:
        penalty: which function or set, on what.
        apply: how it acts; for a constraint ``"proximal"``.
        metric: of ``"proximal"``.
        module: whose parameters are selected.
        host: its clock and its optimizers.
        dual_averaging: of ``"proximal"``.
        total_steps: length of the run in optimizer steps, where the strength needs it.
        label: a name that no other one at work on the module has.

    Raises:
        TypeError: ``penalty`` is neither a penalty nor a constraint.
        ValueError: a combination that would act wrongly, or a bad schedule.
    """

    def __init__(
        self,
        penalty: Regularizer,
        apply: Apply,
        metric: Metric,
        module: nn.Module,
        host: Host,
        *,
        total_steps: int | None = None,
        dual_averaging: DualAveraging = True,
        label: str | None = None,
    ) -> None:
        check_apply(penalty, apply, metric)
        check_dual_averaging(dual_averaging, apply)
        check_schedule(penalty.strength, total_steps)
        self.penalty, self.host = penalty, host
        self.apply: Apply = apply
        self.metric: Metric = metric
        self.term = Term(penalty, module, total_steps, label, in_place=apply == "proximal")
        if apply == "proximal":
            self.term.bound.warn()
        self.term.dual_averaging = dual_averaging
        # by identity of an optimizer whose coming step has it: a gradient that it was added to, or None
        self._added: dict[int, Tensor | None] = {}
        #: whether it acts anew on the gradients of each call of a closure, and not once a step
        self.repeats = apply in ("gradient", "loss")
        self.asks_of_clipping = apply == "proximal" and not penalty.is_constraint
        self.steps_seen, self._checked = 0, False
        self._own_gradients, self._undone = OwnGradients(self.term), Undone(self)
        self._hooked: dict[int, _Hooked] = {}
        self._announces = host.announces() and not penalty.is_constraint
        self._looked: set[int] = set()  # by identities of optimizers, as all of these
        self._announced: dict[int, int] = {}  # by identity of an optimizer: the step
        self._awaited: dict[int, Sequence[Awaited]] = {}  # decays that wait for the update
        self._now: tuple[int, float] | None = None  # the step last asked for, and its strength

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.penalty!r}, apply={self.apply!r})"

    @property
    def turn(self) -> int:
        """Its place among those that act in one step."""
        return self.penalty.turn

    def strength(self) -> float:
        """Return λ of the coming step, asked for once a step."""
        if not callable(self.penalty.strength) and not self.term.bound.follows_steps:
            return 0.0 if self._is_stopped() else self.term.strength(0)
        step = self.host.step()
        if self._now is None or self._now[0] != step:
            self.term.total_steps = self.host.length(self.term.total_steps)
            self._now = step, 0.0 if self._is_stopped() else self.term.strength(step)
        return self._now[1]

    def _is_stopped(self) -> bool:
        """Whether another one at work holds the zeros that this one has made."""
        if self.penalty.is_constraint or not self.term.bound.holds_zeros:
            return False
        for optimizer in self.optimizers() if self._hooked else self.host.optimizers() or ():
            for other in StepHooks.members_of(optimizer):
                if isinstance(other, Engine) and other.penalty.stops_penalties and other.strength() > 0:
                    return True
        return False

    def hook(self, optimizer: Optimizer) -> None:
        """Take part in the steps of ``optimizer``, or say why not."""
        if id(optimizer) in self._hooked or not self.term.groups(optimizer):
            return
        check_optimizer(self.term, self.apply, optimizer, self.metric)
        warm_up(self.term, self.apply, self.term.trainable(optimizer))
        inside = self.apply != "loss" and self.host.acts_inside(self.apply, optimizer)
        follows = inside or self.apply == "proximal" or self.penalty.awaits_update
        hooks = None
        if follows and not runs_hooks(optimizer):
            raise ValueError(
                f"{type(optimizer).__name__} runs no hooks in its step, so that apply={self.apply!r} of "
                f"{self.penalty!r} cannot follow it; give the optimizer inside it, or use apply='gradient'"
            )
        if follows or (self.apply == "gradient" and runs_hooks(optimizer)):
            hooks = StepHooks.of(optimizer)
            beside = [m.term for m in hooks.members if isinstance(m, Engine) and m.apply == "proximal"]
            warn_of_sums(self.term, beside if self.apply == "proximal" else ())
            hooks.add(self)
        self._hooked[id(optimizer)] = _Hooked(optimizer, inside, hooks)

    def optimizers(self) -> list[Optimizer]:
        """Return those whose steps it takes part in."""
        return [hooked.optimizer for hooked in self._hooked.values()]

    def look(self, optimizer: Optimizer) -> None:
        """Look which tensors nothing trains, where the gradients of the first step are complete."""
        if self.apply == "loss" or id(optimizer) in self._looked:
            return
        self._looked.add(id(optimizer))
        self.host.look(optimizer)
        self.term.look(other for other in self.optimizers() if other is not optimizer)

    def announce(self, optimizer: Optimizer) -> None:
        """Act before a step whose gradients are complete, where the host says so."""
        self.steps_seen += 1
        if not self.repeats and self._announced.get(id(optimizer)) == self.host.step():
            return  # a closure that is called again
        self.hook(optimizer)  # made since the fit started, or given parameters
        if (hooked := self._hooked.get(id(optimizer))) is None:
            return
        self._announced[id(optimizer)] = 0 if self.repeats else self.host.step()
        if not hooked.inside:
            if self.apply == "gradient" and hooked.hooks is not None and not self._own_gradients.left:
                hooked.hooks.remove(self)  # nothing is left to do after the update
                self._hooked[id(optimizer)] = hooked._replace(hooks=None)
            self.before_step(optimizer)
            self._added.pop(id(optimizer), None)

    def leave_out_next(self, optimizer: Optimizer) -> None:
        """Add nothing to the gradients of the coming step, to which somebody else does."""
        self._added[id(optimizer)] = None

    def add_before_clipping(self, optimizer: Optimizer, scale: float) -> None:
        """Add to gradients that are about to be clipped, and not again before their step."""
        if id(optimizer) in self._hooked and not self._has_added(optimizer):
            self.look(optimizer)
            add_gradient_(self.term, optimizer, self.strength(), scale)
            self._added[id(optimizer)] = self._gradient(optimizer)

    def _has_added(self, optimizer: Optimizer) -> bool:
        """Whether the coming step has the gradient; a step that was left out may have taken it along."""
        if id(optimizer) not in self._added:
            return False
        gradient = self._added[id(optimizer)]
        return gradient is None or gradient is self._gradient(optimizer)

    def _gradient(self, optimizer: Optimizer) -> Tensor | None:
        return next((p.grad for _, parameters in self.term.stepped(optimizer) for p in parameters), None)

    def acts_inside(self, optimizer: Optimizer) -> bool:
        """Whether :meth:`before_step` is to be called in the step."""
        return (hooked := self._hooked.get(id(optimizer))) is not None and hooked.inside

    @without_grad
    def before_step(self, optimizer: Optimizer) -> None:
        """Act before the update, when the gradients are complete."""
        self.look(optimizer)
        if not self._checked:
            self._checked = self.host.check(self.term, optimizer, self._own_gradients.said)
        if self.apply == "proximal":
            self._undone.look(optimizer)
            self.term.note(optimizer)
            if self.term.bound.follows_steps:
                self.strength()  # it looks at the weights, which the update then moves away from zero
            if self.penalty.is_constraint:
                look_before_(self.term, optimizer, self.strength())
        elif self.apply == "decoupled":
            self._awaited[id(optimizer)] = decay_(self.term, optimizer, self.strength(), self.host.step)
        elif self.apply == "gradient":
            if self._own_gradients.left:
                self._own_gradients.look(optimizer)
            if not self._has_added(optimizer):
                add_gradient_(self.term, optimizer, self.strength())
            if self._own_gradients.left:
                self._own_gradients.begin()

    @without_grad
    def after_step(self, optimizer: Optimizer) -> None:
        """Act after the update."""
        if self.apply == "proximal":
            make_averages_(self.term, optimizer, self.host.is_saved)
        if StepHooks.of(optimizer).fills:
            return  # no step at all
        if self._announces and self._announced.pop(id(optimizer), None) is None:
            return  # stepped behind the host's back, where no schedule moves on
        if self.penalty.is_constraint:
            project_(self.term, optimizer, self.strength())
        elif self.apply == "proximal":
            noted = StepHooks.of(optimizer).noted
            prox_(self.term, optimizer, self.strength(), self.host.step, self.metric, *noted)
        elif self.apply == "gradient":
            self._own_gradients.check(optimizer, assigned=not self._announces)
        elif self.apply == "decoupled":
            decay_where_agreed_(self._awaited.pop(id(optimizer), ()), self.host.step)
        if self.apply == "proximal":
            self._undone.note(optimizer, StepHooks.members_of(optimizer))
        self.term.forget(optimizer)
        self._added.pop(id(optimizer), None)
        if not found_inf(optimizer):  # a fused optimizer comes here even when its scaler skips the step
            self.host.stepped(optimizer)

    def loss_term(self, loss: Tensor | None = None) -> Tensor:
        """Return what to add to ``loss``; tensors that nothing trains are left out."""
        if loss is not None and self.term.untrained.asks:
            self.term.untrained.ask(loss, (s.parameter for s in self.term.selected))
        return self.term.value(self.strength(), self.host.optimizers())

    @without_grad
    def value(self) -> Tensor:
        """Return the term at this moment, over the trainable tensors that the host's optimizers hold."""
        return self.term.value(self.strength(), self.host.optimizers(), self.host.toggled())

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has been learned of the module, if anything."""
        return self.term.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self.term.load_state_dict(state)
        self._now = None

    def detach(self) -> None:
        """Leave no trace in the optimizers."""
        for hooked in self._hooked.values():
            if hooked.hooks is not None:
                hooked.hooks.remove(self)
        self._hooked, self._announced, self._looked = {}, {}, set()
        self.term.untrained.end()
        self.host.detached()
        self._own_gradients.end()
