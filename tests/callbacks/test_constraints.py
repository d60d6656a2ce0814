"""Constraints hold after every step, and checkpoints carry what a constraint or a penalty has learned."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L2SP, Orthogonality, RegularizedModule, SpectralNorm
from lightning_reg.callbacks import Box, MaxNorm, NonNegative, NormBudget, PenaltyCallback, UnitNorm
from tests import support


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Own(RegularizedModule):
    def __init__(self):
        super().__init__(penalties=[SpectralNorm(0.1), L2SP(0.1)])
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def task_loss(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    configure_optimizers = Net.configure_optimizers


class EveryStep(Callback):
    """Runs a check after every batch."""

    def __init__(self, check):
        self.check = check

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.check(pl_module.net)


def trainer(callbacks, epochs=3, **kwargs):
    return Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        **kwargs,
    )


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, generator=generator)
    return DataLoader(TensorDataset(x, 3 * x[:, :1] - x[:, 1:2]), batch_size=8)


def fit(callbacks, module=None, epochs=3, **kwargs):
    module = module or Net()
    run = trainer(callbacks, epochs)
    run.fit(module, data(), **kwargs)
    return module, run


def row_norms(net):
    return [net[i].weight.norm(dim=1) for i in (0, 2)]


CHECKS = {
    "max_norm": (MaxNorm(0.4), lambda net: all(bool((n <= 0.4 * (1 + 1e-6)).all()) for n in row_norms(net))),
    "unit_norm": (UnitNorm(), lambda net: all(torch.allclose(n, torch.ones_like(n)) for n in row_norms(net))),
    "non_negative": (NonNegative(), lambda net: all(bool((net[i].weight >= 0).all()) for i in (0, 2))),
    "box": (
        Box(-0.2, 0.1),
        lambda net: all(bool((net[i].weight.clamp(-0.2, 0.1) == net[i].weight).all()) for i in (0, 2)),
    ),
    "columns": (
        MaxNorm(0.3, "net.0.weight", groups="columns"),
        lambda net: bool((net[0].weight.norm(dim=0) <= 0.3 * (1 + 1e-6)).all()),
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_constraint_holds_after_every_step(name):
    constraint, holds = CHECKS[name]
    seen = []
    module, _ = fit([constraint, EveryStep(lambda net: seen.append(holds(net)))])
    assert len(seen) == 12 and all(seen)
    plain, _ = fit([])
    assert not holds(plain.net)  # it was not so by itself
    assert constraint._work is None and not torch.equal(module.net[0].bias, Net().net[0].bias)


def test_max_norm_is_the_nearest_point_and_leaves_short_rows_alone():
    from lightning_reg.groups.layout import Slices
    from lightning_reg.prox.projections import max_norm_

    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    after = weight.clone()
    max_norm_(after, Slices((5, 3), (0,)), 1.2)
    torch.testing.assert_close(after, torch.renorm(weight, 2, 0, 1.2), rtol=1e-6, atol=1e-6)
    short = weight.norm(dim=1) <= 1.2
    assert torch.equal(after[short], weight[short]) and short.any() and not short.all()


def test_norm_budget_keeps_energies_at_their_budgets():
    """Adam pushes norms up; the multipliers hold half the squared norm near the initial one."""
    start = {n: 0.5 * p.detach().square().sum() for n, p in Net().named_parameters() if p.dim() > 1}
    budget = NormBudget(1.0, rate=0.1)
    held, _ = fit([budget], epochs=60)
    free, _ = fit([], epochs=60)
    for name, energy in start.items():
        got = 0.5 * held.get_parameter(name).detach().square().sum()
        assert got <= 1.2 * energy < 0.5 * free.get_parameter(name).detach().square().sum()
        assert budget.multipliers()[name] > 0


def test_norm_budget_resumes_where_it_was(tmp_path):
    def make():
        return [NormBudget(0.9, rate=0.5, warmup_steps=6)]

    whole, _ = fit(make(), epochs=4)
    _, run = fit(make(), epochs=2)
    run.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    resumed, _ = fit(make(), epochs=4, ckpt_path=tmp_path / "half.ckpt")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


class SaveInFit(Callback):
    """Saves while the fit goes on, as ModelCheckpoint does."""

    def __init__(self, path, epoch):
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.fit_loop.epoch_progress.increment_completed()
            trainer.save_checkpoint(self.path)
            trainer.fit_loop.epoch_progress.current.completed -= 1


PENALTIES = [SpectralNorm(0.3), L2SP(0.3), Orthogonality(0.1, form="srip")]


@pytest.mark.parametrize("apply", ["gradient", "loss", "proximal"])
@pytest.mark.parametrize("penalty", PENALTIES, ids=["spectral", "l2_sp", "srip"])
def test_a_penalty_with_state_resumes_bit_for_bit(tmp_path, penalty, apply):
    if apply == "proximal" and not (penalty.has_prox and penalty.prox_in_metric):
        pytest.skip("no proximal operator in Adam's metric")

    def make():
        return [PenaltyCallback(penalty, apply=apply)]

    path = tmp_path / "half.ckpt"
    whole, _ = fit([*make(), SaveInFit(path, 1)], epochs=4)
    state = torch.load(path, weights_only=True)
    assert state["lightning_reg"] and not state["callbacks"]
    resumed, _ = fit(make(), epochs=4, ckpt_path=path)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    fit([], epochs=4, ckpt_path=path)  # plain Lightning takes it


def test_a_regularized_module_keeps_its_penalties_state(tmp_path):
    path = tmp_path / "half.ckpt"
    whole, _ = fit([SaveInFit(path, 1)], Own(), epochs=4)
    assert len(torch.load(path, weights_only=True)["lightning_reg/module"]) == 2
    resumed, _ = fit([], Own(), epochs=4, ckpt_path=path)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_penalty_without_state_leaves_nothing_in_a_checkpoint(tmp_path):
    path = tmp_path / "half.ckpt"
    fit([PenaltyCallback(Orthogonality(0.1)), SaveInFit(path, 1)])
    assert "lightning_reg" not in torch.load(path, weights_only=True)


def test_copies_repeated_fits_frozen_tensors_and_bad_arguments():
    constraint = copy.deepcopy(MaxNorm(0.4))
    fit([constraint])
    fit([constraint])
    module = Net()
    module.net[0].weight.requires_grad_(False)
    before = module.net[0].weight.clone()
    fit([UnitNorm()], module)
    assert torch.equal(module.net[0].weight, before)
    with pytest.raises(ValueError, match="matches none"):
        fit([MaxNorm(1.0, "nothing.*")])
    for bad in (lambda: MaxNorm(0.0), lambda: Box(1.0, 0.0), lambda: NormBudget(0.0)):
        with pytest.raises(ValueError, match=r"out of range|empty"):
            bad()


def test_lazy_modules_are_constrained_once_they_have_a_shape():
    module = support.Net()
    module.net[0] = nn.LazyLinear(5)
    support.fit(module, MaxNorm(0.1), NormBudget(0.5, select=lambda name, parameter, owner: True), steps=4)
    assert (module.net[0].weight.norm(dim=1) <= 0.1 + 1e-6).all()


def test_a_norm_budget_starts_anew_in_a_new_run():
    budget = NormBudget(0.5)
    support.fit(support.Net(), budget, steps=4)
    first = budget.learned()
    larger = support.Net()
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.mul_(10)
    support.fit(larger, budget, steps=4)
    budgets = {name: value for name, value in budget.learned().items() if name.endswith(":budget")}
    assert budgets
    for name, value in budgets.items():
        torch.testing.assert_close(value, 100 * first[name])
