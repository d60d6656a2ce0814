"""Penalties on the forward pass against autograd written by hand."""

from __future__ import annotations

import itertools
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from lightning_reg import (
    L1,
    L2,
    ActivityPenalty,
    ConfidencePenalty,
    ElasticNet,
    JacobianPenalty,
    L2Norm,
    Linear,
    RDrop,
)
from lightning_reg.callbacks import ForwardPenaltyCallback, PenaltyCallback
from lightning_reg.penalties.jacobian import jacobian_penalty
from lightning_reg.penalties.r_drop import symmetric_divergence
from tests.support import (
    QUIET,
    Net,
    RegularizedNet,
    batches,
    data,
    fit,
    network,
    relative,
    tutorial_sgd,
    weights,
)

STEPS = 20


def activity_by_hand(net: nn.Sequential, x: Tensor, output: Tensor, hidden: Tensor) -> Tensor:
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    return 0.1 * hidden.abs().sum() / len(x)


def jacobian_by_hand(net: nn.Sequential, x: Tensor, output: Tensor, hidden: Tensor) -> Tensor:
    # one output: the projection on ±1 is the whole Jacobian
    (rows,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    return 0.5 * 0.3 * rows.square().sum() / len(x)


CASES = {
    "activity": (ActivityPenalty(L1(0.1), modules=nn.ReLU), activity_by_hand),
    "jacobian": (JacobianPenalty(0.3, modules="net"), jacobian_by_hand),
}


def loop(by_hand: Any, accumulate: int, precision: str, size: int = 8) -> Tensor:
    dtype = torch.float64 if precision == "64-true" else torch.float32
    autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    net = network().to(dtype)
    optimizer = tutorial_sgd(net.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "16-mixed")
    micro = itertools.cycle(list(batches(size, dtype=dtype)))
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(accumulate):
            x, y = next(micro)
            x = x.clone().requires_grad_()
            half = autocast or torch.bfloat16
            with torch.autocast("cpu", half, enabled=autocast is not None, cache_enabled=False):
                hidden = net[1](net[0](x))
                output = net[2](hidden)
                loss = nn.functional.mse_loss(output, y)
            if by_hand is not None:
                loss = loss + by_hand(net, x, output, hidden)
            scaler.scale(loss / accumulate).backward()
        scaler.step(optimizer)
        scaler.update()
    return weights(net)


def options(accumulate: int, precision: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    if precision == "16-mixed":  # precision="16-mixed" alone is bfloat16 on the CPU
        return {**chosen, "plugins": [MixedPrecision("16-mixed", "cpu")]}
    return {**chosen, "precision": precision}


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_callback_and_module_are_the_loop_by_hand(case: str, accumulate: int, precision: str) -> None:
    penalty, by_hand = CASES[case]
    dtype = torch.float64 if precision == "64-true" else torch.float32
    expected = loop(by_hand, accumulate, precision)
    assert relative(loop(None, accumulate, precision), expected) > 1e-3
    attached, carrying = Net(), RegularizedNet([penalty])
    for module, callbacks in ((attached, [ForwardPenaltyCallback(penalty)]), (carrying, [])):
        loader = batches(dtype=dtype)
        fit(module, *callbacks, steps=STEPS, loader=loader, max_epochs=-1, **options(accumulate, precision))
        assert relative(weights(module), expected) < (1e-12 if precision == "64-true" else 1e-6)


class Sharded(Net):
    """Each of two processes takes its half of every batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        half = slice(self.global_rank * 4, self.global_rank * 4 + 4)
        return super().training_step([part[half] for part in batch], batch_idx)

    def on_train_end(self) -> None:
        if self.global_rank == 0:
            torch.save(weights(self), self.path)


def both_by_hand(net: nn.Sequential, x: Tensor, output: Tensor, hidden: Tensor) -> Tensor:
    return activity_by_hand(net, x, output, hidden) + jacobian_by_hand(net, x, output, hidden)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*process.* is multi-threaded.*")
def test_two_processes_are_one_with_the_whole_batch(tmp_path: Any) -> None:
    module = Sharded()
    module.path = tmp_path / "weights.pt"
    fit(
        module,
        *[ForwardPenaltyCallback(penalty) for penalty, _ in CASES.values()],
        steps=STEPS,
        max_epochs=-1,
        strategy="ddp_spawn",
        devices=2,
        use_distributed_sampler=False,
    )
    assert relative(torch.load(module.path), loop(both_by_hand, 1, "32-true")) < 1e-6


def recorded(penalty: Any, module: nn.Module, x: Tensor) -> Tensor:
    with penalty.record(module) as term:
        module(x)
        return term.value()


def test_activity_by_hand() -> None:
    net, x = network().double(), data(dtype=torch.float64).tensors[0]
    hidden = net[1](net[0](x))
    for penalty, expected in (
        (L1(0.3), 0.3 * hidden.abs().sum() / 64),
        (L2(0.3), 0.15 * hidden.square().sum() / 64),
        (ElasticNet(0.3, l1_ratio=0.2), (0.06 * hidden.abs().sum() + 0.12 * hidden.square().sum()) / 64),
    ):
        torch.testing.assert_close(recorded(ActivityPenalty(penalty), net, x), expected)
    several = ActivityPenalty(L1(0.3), modules=["0", nn.ReLU])
    torch.testing.assert_close(
        recorded(several, net, x), 0.3 * (hidden.abs().sum() + net[0](x).abs().sum()) / 64
    )


def test_jacobian_is_exact_along_the_axes_and_unbiased_in_between() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    each = [torch.autograd.functional.jacobian(net, row) for row in x.detach()]
    expected = torch.stack([jacobian.square().sum() for jacobian in each]).mean()
    axes = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 5, 3)
    torch.testing.assert_close(jacobian_penalty(net(x), x, axes), expected)
    value = recorded(JacobianPenalty(2.0, projections=4000), net, x.detach())
    torch.testing.assert_close(value, expected, rtol=0.02, atol=0.0)  # 4000 draws: the error of a mean
    # the gradient with respect to a weight, by central differences
    parameter = net[0].weight
    (gradient,) = torch.autograd.grad(jacobian_penalty(net(x), x, axes), parameter)
    with torch.no_grad():
        parameter[0, 0] += 1e-6
    above = jacobian_penalty(net(x), x, axes)
    with torch.no_grad():
        parameter[0, 0] -= 2e-6
    below = jacobian_penalty(net(x), x, axes)
    assert gradient[0, 0].item() == pytest.approx(((above - below) / 2e-6).item(), rel=1e-6)


def test_confidence_is_torch_distributions_entropy() -> None:
    net, x = nn.Linear(10, 4), data().tensors[0]
    expected = -0.7 * Categorical(logits=net(x)).entropy().mean()
    torch.testing.assert_close(recorded(ConfidencePenalty(0.7), net, x), expected)


def test_r_drop_is_torch_distributions_divergence() -> None:
    net, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(10, 4)), data().tensors[0]
    torch.manual_seed(5)
    p, q = Categorical(logits=net(x)), Categorical(logits=net(x))
    expected = 0.7 * 0.5 * (kl_divergence(p, q) + kl_divergence(q, p)).mean()
    torch.manual_seed(5)
    value = recorded(RDrop(0.7), net, x)
    torch.testing.assert_close(value, expected)
    assert value > 0
    assert recorded(RDrop(0.7), nn.Linear(10, 4), x) == 0


def test_the_divergence_of_sequences_is_over_their_classes() -> None:
    first, second = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    p, q = Categorical(logits=first), Categorical(logits=second)
    expected = 0.5 * (kl_divergence(p, q) + kl_divergence(q, p)).mean()
    torch.testing.assert_close(symmetric_divergence(first, second), expected)


def test_only_training_steps_are_seen_and_nothing_is_left() -> None:
    class Validated(Net):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.net(batch[0])

    module, callback = Validated(), ForwardPenaltyCallback(ActivityPenalty(L1(0.1)))
    trainer = pl.Trainer(
        callbacks=[callback],
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches(), batches())
    assert not module.net[1]._forward_hooks
    assert "training_step" not in vars(module)
    assert callback._work is None
    carrying = RegularizedNet([ActivityPenalty(L1(0.1))])
    fit(carrying, steps=2)
    assert not carrying.net[1]._forward_hooks


@pytest.mark.parametrize("training", [False, True])
def test_a_validation_that_calls_the_training_step_is_not_penalized(training: bool) -> None:
    class Validated(Net):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.train(training)
            with torch.set_grad_enabled(training):
                loss = self.training_step(batch, batch_idx)
            assert loss == super().training_step(batch, batch_idx)
            assert not callback._work[2]._calls

    module, callback = Validated(), ForwardPenaltyCallback(ActivityPenalty(L1(0.1)))
    trainer = pl.Trainer(callbacks=[callback], max_steps=16, **QUIET)
    trainer.fit(module, batches(), batches())
    assert trainer.global_step == 16


def test_a_module_is_not_watched_after_an_exception() -> None:
    class Failing(RegularizedNet):
        def task_loss(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if batch_idx == 2:
                raise RuntimeError("stop")
            return super().task_loss(batch, batch_idx)

    module = Failing([ActivityPenalty(L1(0.1))])
    with pytest.raises(RuntimeError, match="stop"):
        fit(module)
    (recorder,) = module._recorders
    recorder.clear()
    module.train()
    module.net(torch.ones(2, 10))
    assert not recorder._calls


def test_terms_and_scheduled_strengths_are_logged() -> None:
    penalty = ActivityPenalty(L1(Linear(0.1, 0.2, until=10)))
    for module, callbacks in ((Net(), [ForwardPenaltyCallback(penalty)]), (RegularizedNet(penalty), [])):
        trainer = fit(module, *callbacks, steps=6, log_every_n_steps=1, barebones=False)
        assert trainer.callback_metrics["penalty/activity_l1/strength"] == pytest.approx(0.15)
        assert trainer.callback_metrics["penalty/activity_l1"] > 0


@pytest.mark.parametrize("where", ["callback", "module"])
def test_two_of_a_name_are_kept_apart_in_logs(where: str) -> None:
    penalties = [ActivityPenalty(L1(0.1), modules="net.0"), ActivityPenalty(L1(10.0), modules="net.0")]
    module = RegularizedNet(penalties) if where == "module" else Net()
    callbacks = [] if where == "module" else [ForwardPenaltyCallback(penalty) for penalty in penalties]
    metrics = fit(module, *callbacks, steps=1, log_every_n_steps=1).callback_metrics
    assert metrics["penalty/activity_l1_2"] == pytest.approx(100.0 * metrics["penalty/activity_l1"])


def test_a_module_keeps_weights_and_activities_of_one_name_apart() -> None:
    module = RegularizedNet([L1(0.1, name="mine"), ActivityPenalty(L1(0.1), modules="net.0", name="mine")])
    metrics = fit(module, steps=1, log_every_n_steps=1).callback_metrics
    terms = metrics["penalty/mine"] + metrics["penalty/mine_2"]
    torch.testing.assert_close(metrics["loss/task"] + terms, metrics["loss/regularized"])


def test_an_epoch_shorter_than_the_logging_interval_has_a_value() -> None:
    callback = ForwardPenaltyCallback(ActivityPenalty(L1(0.1)))
    trainer = fit(Net(), callback, steps=8, log_every_n_steps=50)
    assert trainer.callback_metrics["penalty/activity_l1"] > 0


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="takes an L1, L2 or ElasticNet"):
        ActivityPenalty(L2Norm(0.1))
    with pytest.raises(ValueError, match="out of range"):
        JacobianPenalty(-1.0)
    with pytest.raises(ValueError, match="projections=0"):
        JacobianPenalty(1.0, projections=0)
    with pytest.raises(TypeError, match="neither a number nor a schedule"):
        RDrop("1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="use PenaltyCallback for one on the weights"):
        ForwardPenaltyCallback(L1(0.1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is not a penalty"):
        PenaltyCallback(ConfidencePenalty(0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matches none of the 4 modules of Net; it has net"):
        fit(Net(), ForwardPenaltyCallback(ActivityPenalty(L1(0.1), modules="encoder.*")))
    # Net calls self.net(x), never self(x)
    with pytest.raises(RuntimeError, match="saw no call"):
        fit(Net(), ForwardPenaltyCallback(ConfidencePenalty(0.1)))
    with pytest.raises(TypeError, match="no Jacobian"):
        recorded(JacobianPenalty(1.0), nn.Embedding(3, 2), torch.tensor([0, 1]))

    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ValueError, match="manual optimization"):
        fit(Manual(), ForwardPenaltyCallback(ActivityPenalty(L1(0.1))))
