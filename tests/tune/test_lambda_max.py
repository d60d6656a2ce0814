"""The largest sensible strength, against scikit-learn and skglm."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, L2, ElasticNet, GroupLasso
from lightning_reg.tune import lambda_max, lambda_max_by_layer
from tests.support import Net, batches, l1_logistic
from tests.tune.problems import Linear, breast_cancer, diabetes


def test_lasso() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = diabetes()
    inputs, targets = data.tensors[0].numpy(), data.tensors[1].numpy().ravel()
    alphas = linear_model.lasso_path(inputs, targets - targets.mean())[0]
    found = lambda_max(Linear(10), L1(1.0), data)
    assert found == pytest.approx(alphas[0], rel=1e-6)
    for factor, zeros in ((1.0 + 1e-9, True), (1.0 - 1e-4, False)):
        model = linear_model.Lasso(alpha=found * factor, tol=1e-14, max_iter=10**6).fit(inputs, targets)
        assert (not model.coef_.any()) is zeros


@pytest.mark.parametrize("logistic", [False, True])
def test_the_intercept_matters_where_inputs_are_not_centred(logistic: bool) -> None:
    inputs, targets = (breast_cancer() if logistic else diabetes()).tensors
    shifted = TensorDataset(inputs + torch.linspace(0.5, 2.0, inputs.shape[1]), targets)
    gradient = (inputs - inputs.mean(0)).T @ (targets.mean() - targets) / len(targets)
    found = lambda_max(Linear(inputs.shape[1], logistic=logistic), L1(1.0), shifted)
    assert found == pytest.approx(float(gradient.abs().max()), rel=1e-6)


def test_elastic_net() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = diabetes()
    inputs, targets = data.tensors[0].numpy(), data.tensors[1].numpy().ravel()
    alphas = linear_model.enet_path(inputs, targets - targets.mean(), l1_ratio=0.3)[0]
    found = lambda_max(Linear(10), ElasticNet(1.0, l1_ratio=0.3), data)
    assert found == pytest.approx(alphas[0], rel=1e-6)


def test_logistic_regression_with_the_intercept_fitted() -> None:
    svm = pytest.importorskip("sklearn.svm")
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = breast_cancer()
    inputs, targets = data.tensors[0].numpy(), data.tensors[1].numpy().ravel()
    found = lambda_max(Linear(30, logistic=True), L1(1.0), data)
    gradient = inputs.T @ (targets.mean() - targets) / len(targets)
    assert found == pytest.approx(abs(gradient).max(), rel=1e-6)
    # l1_min_c knows no unpenalized intercept: the classes are balanced by their weights instead
    balanced = np.where(targets == 1, 1 / targets.sum(), 1 / (1 - targets).sum())
    weighted = TensorDataset(*data.tensors, torch.tensor(balanced / balanced.mean()).view(-1, 1))

    def loss(module: Linear, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(
            module.linear(batch[0]), batch[1], weight=batch[2]
        )

    scaled = inputs * (balanced / balanced.mean())[:, None]
    smallest_c = svm.l1_min_c(scaled, targets, loss="log", fit_intercept=False)
    ours = lambda_max(Linear(30, logistic=True), L1(1.0), weighted, loss=loss)
    assert ours == pytest.approx(1 / (smallest_c * len(targets)), rel=1e-6)
    # and on the data as they are, scikit-learn's own solver changes from nothing to something there
    for factor, zeros in ((1 + 1e-4, True), (1 - 1e-2, False)):
        model = linear_model.LogisticRegression(
            **l1_logistic(),
            C=1 / (found * factor * len(targets)),
            solver="saga",
            tol=1e-8,
            max_iter=20_000,
        ).fit(inputs, targets)
        assert (not model.coef_.any()) is zeros


def test_group_lasso() -> None:
    utilities = pytest.importorskip("skglm.utils.data")
    data = diabetes()
    inputs, targets = data.tensors[0].numpy(), data.tensors[1].numpy().ravel()
    labels = torch.arange(10).div(2, rounding_mode="floor").view(1, 10)
    penalty = GroupLasso(1.0, groups=lambda *_: labels)
    indices, starts = utilities.grp_converter(2, 10)
    reference = utilities._alpha_max_group_lasso(
        inputs, targets - targets.mean(), indices, starts, np.full(5, 2**0.5)
    )
    assert lambda_max(Linear(10), penalty, data) == pytest.approx(reference, rel=1e-6)


def test_it_is_the_smallest() -> None:
    data = diabetes()
    found = lambda_max(Linear(10), L1(1.0), data)
    inputs, targets = data.tensors
    gradient = inputs.T @ (targets.mean() - targets) / len(targets)
    assert bool((gradient.abs() <= found * (1 + 1e-12)).all())
    assert bool((gradient.abs() > found * (1 - 1e-12)).any())


def test_batches_of_unequal_size_count_by_their_size() -> None:
    data = diabetes()
    whole = lambda_max(Linear(10), L1(1.0), data)
    assert lambda_max(Linear(10), L1(1.0), DataLoader(data, batch_size=100)) == pytest.approx(whole, rel=1e-9)


def test_a_layer_that_is_at_zero_stays_there_at_its_bound_and_leaves_below_it() -> None:
    module = Net()
    before = copy.deepcopy(module.state_dict())
    bounds = lambda_max_by_layer(module, L1(1.0), batches(64))
    assert list(bounds) == ["net.0.weight", "net.2.weight"]
    assert lambda_max(module, L1(1.0), batches(64)) == max(bounds.values())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    for name, bound in bounds.items():
        for factor, stays in ((1 + 1e-5, True), (1 - 1e-3, False)):
            net = copy.deepcopy(module)
            weight = net.get_parameter(name)
            with torch.no_grad():
                weight.zero_()
            (batch,) = batches(64)
            net.training_step(batch, 0).backward()
            moved = L1(1.0).prox(weight - 0.01 * weight.grad, bound * factor, 0.01)
            assert (not bool(moved.any())) is stays


def test_a_penalty_without_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match="no strength of L2 makes a weight exactly zero"):
        lambda_max(Linear(10), L2(1.0), diabetes())


def test_a_module_without_a_training_step_needs_a_loss() -> None:
    with pytest.raises(TypeError, match="give loss="):
        lambda_max(nn.Linear(10, 1), L1(1.0), diabetes())


def test_of_a_weight_that_a_layer_computes() -> None:
    def net() -> Net:
        module = Net()
        nn.utils.parametrizations.weight_norm(module.net[0])
        return module

    with pytest.raises(ValueError, match=r"net\.0\.weight is computed from other parameters by weight_norm"):
        lambda_max_by_layer(net(), L1(1.0), batches())
    module = net()
    found = lambda_max_by_layer(module, GroupLasso(1.0), batches())  # acts on the norms of its rows
    scale = module.net[0].parametrizations.weight.original0
    with torch.no_grad():
        scale.zero_()
    loss = torch.stack([module.training_step(batch, 0) for batch in batches()]).mean()
    gradient = torch.autograd.grad(loss, scale)[0].abs().max() / 10**0.5
    assert found["net.0.weight"] == pytest.approx(float(gradient), rel=1e-5)
