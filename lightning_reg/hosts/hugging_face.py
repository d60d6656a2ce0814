"""The same engine for the Hugging Face Trainer; imported by hand, since it imports transformers."""

from __future__ import annotations

import base64
import io
import warnings
from typing import TYPE_CHECKING, Any, final

import torch

from lightning_reg.apply import Apply, DualAveraging, Metric, check_apply, check_dual_averaging, default_apply
from lightning_reg.hosts.attachment import Attachment, attach
from lightning_reg.hosts.clipping import BetweenBackwardAndStep
from lightning_reg.hosts.log_names import numbered
from lightning_reg.hosts.wrappers import bare_optimizer
from lightning_reg.penalties.regularizer import Regularizer

if TYPE_CHECKING:
    TrainerCallback = object
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError(
            "PenaltyTrainerCallback needs transformers; pip install 'transformers[torch]'"
        ) from error

__all__ = ["PenaltyTrainerCallback"]

#: Of ``trainer_state.json``, where the Trainer keeps callbacks' states; it leaves unknown names alone.
_STATE_KEY = "lightning_reg"
#: Bytes up to which a penalty's state goes into ``trainer_state.json``.
_STATE_LIMIT = 2**22


@final
class PenaltyTrainerCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Penalize the parameters of the model that a ``transformers.Trainer`` trains.

    What :func:`~lightning_reg.attach` does, on the Trainer's clock: schedules count ``state.global_step`` of
    ``state.max_steps``, so a resumed run needs no state for them. With ``max_grad_norm`` above 0 the gradient
    is added in the backward pass, before the Trainer clips: training is as if the term were in the loss. A
    proximal step is as long as the clipped gradient's, in one process; in several, give ``max_grad_norm=0``.
    Several callbacks add up.

    The term's value at the coming step is logged as ``penalty/<name>`` with the training loss, in
    ``state.log_history`` and in the logs of callbacks that come after this one. Those of ``report_to`` come
    before it; to have it there, ``trainer.pop_callback(TensorBoardCallback)`` and add it again.

    Args:
        penalty: which function, on what, how strong.
        apply: ``"gradient"``, ``"decoupled"`` or ``"proximal"``, as in
            :class:`~lightning_reg.callbacks.PenaltyCallback`.
        log: log the term's value.
        metric: of ``"proximal"``: the optimizer's own, or ``"euclidean"``, the learning rate alone.
        dual_averaging: of ``"proximal"``: True for zeros that the noise of mini-batches does not undo, at
            the price of one state tensor a penalized weight; False for the plain proximal step. A number k
            averages over about the last t/k of t steps; True is 4.

    Raises:
        TypeError: ``penalty`` is not a penalty.
        ValueError: at construction or when training begins, a combination that would act wrongly.

    A script needs one line more::

        trainer = Trainer(model, args, callbacks=[PenaltyTrainerCallback(L1(1e-4))], ...)

    >>> from lightning_reg import L1
    >>> PenaltyTrainerCallback(L1(1e-4), apply="proximal")
    PenaltyTrainerCallback(L1(strength=0.0001, select='weights', name=None), apply='proximal')
    """

    def __init__(
        self,
        penalty: Regularizer,
        apply: Apply | None = None,
        log: bool = True,
        *,
        metric: Metric = "optimizer",
        dual_averaging: DualAveraging = True,
    ) -> None:
        apply = default_apply(penalty, apply)
        check_apply(penalty, apply, metric)
        check_dual_averaging(dual_averaging, apply)
        if apply == "loss":
            raise ValueError(
                "apply='loss' has nothing to add to, since the Hugging Face Trainer shows its callbacks no "
                "loss; use apply='gradient', which trains the same"
            )
        self.penalty = penalty
        self.apply: Apply = apply
        self.log = log and not penalty.is_constraint
        self.metric: Metric = metric
        self.dual_averaging: DualAveraging = dual_averaging
        self._handle: Attachment | None = None
        self._clipping: BetweenBackwardAndStep | None = None
        self._name = penalty.log_name
        self._began = -1  # the last step that began

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.penalty!r}, apply={self.apply!r})"

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any
    ) -> None:
        """Attach to the model and its optimizer, or say why not."""
        self.remove()
        self._name, self._began = _name_in_run(self.penalty, state), -1
        handle = attach(
            model,
            optimizer,
            self.penalty,
            self.apply,
            total_steps=state.max_steps,
            metric=self.metric,
            dual_averaging=self.dual_averaging,
        )
        _restore(handle, self._name, state)
        self._handle = handle
        if self.apply == "proximal" and not self.penalty.is_constraint and (args.max_grad_norm or 0.0) > 0.0:
            if args.world_size > 1:
                warnings.warn(
                    f"the Trainer clips gradients to max_grad_norm={args.max_grad_norm}, and in "
                    f"{args.world_size} processes apply='proximal' does not see by how much, so that λ may "
                    "count for more than it says; give TrainingArguments(max_grad_norm=0.0)",
                    stacklevel=2,
                )
            else:
                trained = handle._engine.term.trainable(bare_optimizer(optimizer))
                self._clipping = BetweenBackwardAndStep(trained, optimizer)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the Trainer's step count, and have the gradient added before the Trainer clips."""
        assert self._handle is not None
        self._handle.step = state.global_step
        # an epoch that stops inside an accumulation window leaves its gradients to the next one
        begins = state.global_step != self._began
        self._began = state.global_step
        if begins and self.apply == "gradient" and (args.max_grad_norm or 0.0) > 0.0:
            self._handle.add_gradient_in_backward()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See by what factor the Trainer has clipped, so that a proximal step is as long."""
        if self._clipping is not None:
            self._clipping.note()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have what the penalty has learned saved with a checkpoint."""
        if control.should_save:
            self._store(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have what the penalty has learned saved with a checkpoint."""
        if control.should_save:
            self._store(state)

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any = None, **_: Any) -> None:
        """Log the term's value with the training loss."""
        if not self.log or self._handle is None or "loss" not in (logs or {}):
            return
        self._handle.step = state.global_step
        values = {f"penalty/{self._name}": float(self._handle.value())}
        if callable(self.penalty.strength):
            values[f"penalty/{self._name}/strength"] = self._handle.strength
        logs.update(values)
        state.log_history[-1].update(values)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave no trace."""
        self.remove()

    def remove(self) -> None:
        """Detach from model and optimizer; done at the end of training, so only needed after an error."""
        if self._clipping is not None:
            self._clipping.remove()
            self._clipping = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _store(self, state: Any) -> None:
        assert self._handle is not None
        learned = self._handle.state_dict().get("penalty")
        if not learned:
            return
        buffer = io.BytesIO()
        torch.save(learned, buffer)
        text = base64.b64encode(buffer.getvalue()).decode()
        state.stateful_callbacks.setdefault(_STATE_KEY, {})[self._name] = text


def _name_in_run(penalty: Regularizer, state: Any) -> str:
    """The penalty's name, with a number from the second of that name on."""
    seen = vars(state).setdefault("_lightning_reg_seen", [])  # not a field, so it is not saved
    seen.append(penalty.log_name)
    return numbered(seen)[-1]


def _restore(handle: Attachment, name: str, state: Any) -> None:
    """Go on from the checkpoint that the Trainer resumes from, if it does."""
    learned = handle.state_dict().get("penalty")
    if learned and (size := sum(tensor.nbytes for tensor in learned.values())) > _STATE_LIMIT:
        raise ValueError(
            f"{name} keeps {size / 2**20:.0f} MiB, too much for the Trainer's trainer_state.json; "
            "give L2SP its reference=, a state_dict, which it then need not keep"
        )
    text = state.stateful_callbacks.get(_STATE_KEY, {}).get(name)
    if text is not None:
        stored = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
        handle.load_state_dict({"step": state.global_step, "penalty": stored})
    elif learned and state.global_step > 0:
        warnings.warn(
            f"the checkpoint holds nothing of {name}, which starts afresh at step {state.global_step}",
            stacklevel=2,
        )
