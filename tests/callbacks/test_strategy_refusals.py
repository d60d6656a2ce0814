"""What DeepSpeed and FSDP1 do to parameters, acted out on the CPU: what is right there, what is refused."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from lightning_reg import L1, GroupLasso, TargetSparsity
from lightning_reg.callbacks import Box, MaxNorm, PenaltyCallback
from tests.support import Net, RegularizedNet, fit


class DeepSpeedStrategy(SingleDeviceStrategy):
    """As stages 1 and 2 do, its optimizer steps one flat copy of the weights."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                flat = nn.utils.parameters_to_vector(group["params"]).detach()
                group["params"] = [flat.requires_grad_()]


class FSDPStrategy(SingleDeviceStrategy):
    """As FSDP1 does, it leaves vectors that are marked."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        for parameter in self.lightning_module.parameters():
            parameter._fsdp_flattened = True


def test_deepspeed_adds_the_term_of_every_parameter() -> None:
    plain, module = Net(), Net()
    fit(plain, strategy=DeepSpeedStrategy(), steps=1)
    callback = PenaltyCallback(L1(0.1), apply="loss")
    trainer = fit(module, callback, strategy=DeepSpeedStrategy(), steps=1, log_every_n_steps=1)
    # the weights have not moved: the copy has
    torch.testing.assert_close(trainer.callback_metrics["penalty/l1"], L1(0.1)(module).detach())
    gradients = [one.net[0].weight.grad for one in (module, plain)]
    assert gradients[0] is not None and gradients[1] is not None
    torch.testing.assert_close(gradients[0] - gradients[1], 0.1 * module.net[0].weight.detach().sign())


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (PenaltyCallback(L1(0.1)), "out of reach of apply='gradient'; use apply='loss'"),
        (MaxNorm(1.0), "out of reach of MaxNorm; use ddp"),
    ],
)
def test_deepspeed_refuses_what_needs_its_optimizer(callback: pl.Callback, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fit(Net(), callback, strategy=DeepSpeedStrategy())


def test_deepspeed_of_stage_3_is_refused() -> None:
    sentence = "stage 3 leaves empty parameters, and .* needs them whole"
    for module, callbacks in (
        (Net(), [PenaltyCallback(L1(0.1), apply="loss")]),
        (RegularizedNet([L1(0.1)]), []),
    ):
        for parameter in module.parameters():
            parameter.ds_tensor = parameter.detach()  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=sentence):
            fit(module, *callbacks, strategy=DeepSpeedStrategy())


def flattening(penalty: object, **options: object) -> PenaltyCallback:
    return PenaltyCallback(penalty, **{"log": False, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (flattening(L1(0.1, "*.weight"), log=True), "the value to log is not known; give log=False"),
        (flattening(L1(0.1)), "select='weights' goes by dimensions"),
        (flattening(L1(0.1, "*.weight"), apply="loss"), "apply='loss' needs them whole"),
        (flattening(GroupLasso(0.1, "*.weight")), "GroupLasso.* needs them whole"),
        (flattening(L1(TargetSparsity(0.5), "*.weight"), apply="proximal"), "needs them whole"),
        (MaxNorm(1.0, "*.weight"), "MaxNorm needs them whole"),
    ],
)
def test_fsdp1_refuses_what_its_vectors_cannot_tell(callback: pl.Callback, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fit(Net(), callback, strategy=FSDPStrategy())


def test_fsdp1_lets_penalties_of_single_weights_through() -> None:
    callbacks = [
        flattening(L1(0.1, "*.weight"), apply=apply) for apply in ("gradient", "decoupled", "proximal")
    ]
    for callback in (*callbacks, Box(-0.1, 0.1, "*.weight")):
        fit(Net(), callback, strategy=FSDPStrategy(), steps=1)
