from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from sklearn.metrics import f1_score, mean_absolute_error, r2_score
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, L2, ActivityPenalty, Cosine, RegularizedClassifier, RegularizedRegressor
from tests.support import QUIET, relative, weights

SGD = partial(torch.optim.SGD, lr=0.1)


def network(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


def labelled(size: int = 40, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 5, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    return TensorDataset(x, y.clamp(max=classes - 1), torch.rand(size, generator=generator) + 0.1)


def loader(dataset: Any, batch_size: int = 10) -> DataLoader:
    return DataLoader(dataset, batch_size=batch_size)


def trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(**{**QUIET, "max_epochs": 2, **options})


@pytest.mark.parametrize("apply", ["loss", "decoupled", "proximal"])
def test_an_epoch_shorter_than_the_logging_interval_has_a_value(apply: Any) -> None:
    module = RegularizedClassifier(network(), 3, L1(0.1), apply=apply, optimizer=SGD)
    run = trainer(log_every_n_steps=50)
    run.fit(module, loader(labelled()))
    assert run.callback_metrics["penalty/l1"] > 0
    assert run.callback_metrics["loss/task"] > 0


@pytest.mark.parametrize("apply", ["loss", "decoupled"])
def test_a_validation_that_calls_the_training_step_is_not_penalized(apply: Any) -> None:
    class Validated(RegularizedClassifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            assert self.training_step(batch, batch_idx) == self.task_loss(batch, batch_idx)

    penalties: Any = [L1(0.1), ActivityPenalty(L1(0.1), modules="model.0")]
    module = Validated(network(), 3, penalties, apply=apply, optimizer=SGD)
    run = trainer(max_epochs=1)
    run.fit(module, loader(labelled()), loader(labelled()))
    assert run.global_step == 4


def test_the_classifier_is_a_loop_by_hand() -> None:
    """Label smoothing, class weights and sample weights, against torch's own loss where it has one."""
    dataset = labelled()
    module = RegularizedClassifier(
        network(),
        3,
        L2(0.1),
        apply="loss",
        optimizer=SGD,
        lr_schedule=None,
        label_smoothing=0.2,
        class_weights=[0.5, 1.0, 2.0],
    )
    trainer(max_epochs=3).fit(module, loader(TensorDataset(*dataset.tensors[:2])))
    model = network()
    optimizer = SGD(model.parameters())
    loss = nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0]), label_smoothing=0.2)
    for _ in range(3):
        for x, y in loader(TensorDataset(*dataset.tensors[:2])):
            optimizer.zero_grad()
            decay = 0.05 * (model[0].weight.square().sum() + model[3].weight.square().sum())
            (loss(model(x), y) + decay).backward()
            optimizer.step()
    assert relative(weights(module.model), weights(model)) < 1e-6


def test_sample_weights_are_repetition() -> None:
    x, y, _ = labelled(6).tensors
    repeats = torch.tensor([1, 2, 0, 3, 1, 1])
    for module, target in (
        (RegularizedClassifier(nn.Linear(5, 3), 3, (), class_weights=[1.0, 2.0, 3.0]), y),
        (RegularizedRegressor(nn.Linear(5, 2), ()), x[:, :2]),
    ):
        weighted = module.task_loss((x, target, repeats.float()), 0)
        repeated = module.task_loss(
            (x.repeat_interleave(repeats, 0), target.repeat_interleave(repeats, 0)), 0
        )
        torch.testing.assert_close(weighted, repeated)


def test_the_default_is_adamw_on_the_weights() -> None:
    dataset = TensorDataset(*labelled().tensors[:2])
    module = RegularizedClassifier(network(), 3)
    trainer().fit(module, loader(dataset))
    model = network()
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    step = 0
    for _ in range(2):
        for x, y in loader(dataset):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * Cosine(1.0, 0.0)(step, 8)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
    assert relative(weights(module.model), weights(model)) < 1e-6


def test_proximal_makes_zeros() -> None:
    module = RegularizedClassifier(network(), 3, L1(0.2), apply="proximal", optimizer=SGD)
    trainer(max_epochs=20).fit(module, loader(TensorDataset(*labelled().tensors[:2])))
    assert (module.model[0].weight == 0).float().mean() > 0.2
    assert (module.model[0].bias != 0).all()


def test_every_stage_logs_its_loss_and_metrics_and_they_are_sklearns() -> None:
    dataset = TensorDataset(*labelled().tensors[:2])
    x, y = dataset.tensors
    module = RegularizedClassifier(network(), 3)
    run = trainer(max_epochs=1)
    run.fit(module, loader(dataset), loader(dataset))
    names = ("loss", "accuracy", "f1", "calibration_error")
    assert {f"{stage}/{name}" for stage in ("train", "val") for name in names} <= set(run.callback_metrics)
    (logged,) = run.test(module, loader(dataset), verbose=False)
    assert set(logged) == {f"test/{name}" for name in names}
    predicted = torch.cat(run.predict(module, loader(dataset)))
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(predicted, torch.softmax(module(x), 1))
        expected = nn.functional.cross_entropy(module(x), y)
    assert logged["test/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert logged["test/accuracy"] == pytest.approx((predicted.argmax(1) == y).float().mean().item())
    assert logged["test/f1"] == pytest.approx(f1_score(y, predicted.argmax(1), average="macro"), rel=1e-5)


@pytest.mark.parametrize("flat", [True, False])
def test_the_regressor_measures_as_sklearn_does(flat: bool) -> None:
    x = labelled().tensors[0]
    y = x[:, 0] * 2 + 1
    dataset = TensorDataset(x, y if flat else y[:, None])
    module = RegularizedRegressor(network(1))
    run = trainer(max_epochs=1)
    run.fit(module, loader(dataset), loader(dataset))
    (logged,) = run.test(module, loader(dataset), verbose=False)
    predicted = torch.cat(run.predict(module, loader(dataset)))
    assert logged["test/r2"] == pytest.approx(r2_score(y, predicted), rel=1e-4)
    assert logged["test/mae"] == pytest.approx(mean_absolute_error(y, predicted), rel=1e-5)
    assert logged["test/loss"] == pytest.approx((predicted[:, 0] - y).square().mean().item(), rel=1e-5)


def test_r2_of_one_sample_is_left_out() -> None:
    x = torch.randn(4, 5)
    run = trainer(max_epochs=1)
    module = RegularizedRegressor(nn.Linear(5, 1))
    run.fit(module, loader(TensorDataset(x, x[:, 0])), loader(TensorDataset(x[:1], x[:1, 0])))
    assert "val/mae" in run.callback_metrics
    assert "val/r2" not in run.callback_metrics


def test_learning_rate_schedules_of_all_kinds() -> None:
    dataset = TensorDataset(*labelled().tensors[:2])

    def last_rate(lr_schedule: Any) -> float:
        module = RegularizedClassifier(network(), 3, optimizer=SGD, lr_schedule=lr_schedule)
        run = trainer(max_epochs=2)
        run.fit(module, loader(dataset), loader(dataset))
        return run.optimizers[0].param_groups[0]["lr"]

    assert last_rate(None) == 0.1
    assert last_rate(Cosine(1.0, 0.5)) == pytest.approx(0.05)
    assert last_rate(partial(StepLR, step_size=1, gamma=0.5)) == pytest.approx(0.025)
    assert last_rate(partial(ReduceLROnPlateau, patience=5)) == 0.1


def test_frozen_layers_stay_out_of_the_optimizer() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    trainer(max_epochs=1).fit(RegularizedClassifier(model, 3), loader(TensorDataset(*labelled().tensors[:2])))
    assert torch.equal(before, model[0].weight)


X, Y = labelled(4).tensors[:2]
BAD_BATCHES: list[tuple[Any, Any, str]] = [
    (X * float("nan"), Y, "inputs of train batch 0 have 20 of 20 values that are NaN"),
    (X, Y + 3, "labels must lie in 0, …, 2"),
    (X, Y[:, None].repeat(1, 2), r"labels must be of shape \(4,\)"),
]


@pytest.mark.parametrize(("x", "y", "message"), BAD_BATCHES)
def test_a_bad_batch_spoils_neither_weights_nor_statistics(x: Tensor, y: Tensor, message: str) -> None:
    module = RegularizedClassifier(network(), 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer().fit(module, loader(TensorDataset(x, y)))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_diverged_run_is_said() -> None:
    module = RegularizedRegressor(nn.Linear(5, 1), (), optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(ValueError, match=r"loss of train batch \d+ is NaN though the batch is finite"):
        trainer(max_epochs=50).fit(module, loader(TensorDataset(X * 1e10, Y.float())))


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
def test_an_empty_data_set_is_said() -> None:
    with pytest.raises(ValueError, match="training data set is empty"):
        trainer().fit(RegularizedClassifier(network(), 3), loader(TensorDataset(X[:0], Y[:0])))
    with pytest.raises(ValueError, match="training data set is empty"):
        trainer().fit(
            RegularizedClassifier(network(), 3, lr_schedule=None),
            DataLoader(TensorDataset(X, Y), batch_size=10, drop_last=True),
        )


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_classes=1"):
        RegularizedClassifier(network(), 1)
    with pytest.raises(ValueError, match="label_smoothing=1"):
        RegularizedClassifier(network(), 3, label_smoothing=1.0)
    with pytest.raises(ValueError, match="3 numbers of 0 or more"):
        RegularizedClassifier(network(), 3, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"logits of shape \(batch, 4\), and gives \(4, 3\)"):
        RegularizedClassifier(network(3), 4)(X)
    with pytest.raises(ValueError, match="there are 4 inputs, and targets of shape"):
        RegularizedRegressor(network(1)).task_loss((X, X[:3, 0]), 0)
    with pytest.raises(ValueError, match="targets are of shape"):
        RegularizedRegressor(network(1)).task_loss((X, X[:, :2]), 0)
