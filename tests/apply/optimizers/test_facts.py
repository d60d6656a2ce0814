"""What is refused under which optimizer, before training, and how a user tells of one of their own."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_reg import L1, L2, NonNegative, attach, register_optimizer
from lightning_reg.apply.optimizers import decay_rates, facts, facts_of
from lightning_reg.apply.optimizers.check import check_mode, check_placeable


def of(name: str, package: str = "somewhere", *methods: str, base: type[Optimizer] = SGD) -> type[Optimizer]:
    """A class as a package would bring it, with a ``step`` of its own."""
    body: dict[str, Any] = {method: lambda self, *_: None for method in (*methods, "step")}
    return type(name, (base,), {**body, "__module__": f"{package}.inside"})


def made(cls: type[Optimizer], **options: Any) -> Optimizer:
    return cls([nn.Parameter(torch.ones(2, 2))], lr=0.1, **options)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rows that a test adds are gone after it."""
    monkeypatch.setattr(facts, "_ROWS", dict(facts._ROWS))
    facts.row_of.cache_clear()
    yield
    facts.row_of.cache_clear()


@pytest.mark.parametrize("name", ["SGDScheduleFree", "Schedule_Free_Adam"])
def test_a_weight_that_is_not_the_iterate_is_left_alone(name: str) -> None:
    optimizer = made(of(name))
    for apply in ("decoupled", "proximal"):
        with pytest.raises(ValueError, match=f"under {name}: .* between two averages.*use apply='gradient'"):
            check_mode(optimizer, apply)
    with pytest.raises(ValueError, match="between two averages"):
        check_mode(optimizer, "proximal", euclidean=True)
    with pytest.raises(ValueError, match=f"NonNegative does not hold under {name}"):
        check_placeable(optimizer, "NonNegative")
    for apply in ("gradient", "loss"):
        check_mode(optimizer, apply)
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=f"NonNegative does not hold under {name}"):
        attach(model, of(name)(model.parameters(), lr=0.1), NonNegative())


def test_sharpness_aware_steps_move_the_weights_twice() -> None:
    optimizer = made(of("Sharp", "somewhere", "first_step", "second_step"))
    for apply in ("gradient", "decoupled", "proximal"):
        with pytest.raises(ValueError, match="two gradients a step; attach to the optimizer inside it"):
            check_mode(optimizer, apply)
    check_mode(optimizer, "loss")


def test_a_fused_backward_pass_leaves_the_loss() -> None:
    optimizer = made(of("Frugal", "somewhere", "fused_backward"))
    for apply in ("gradient", "decoupled", "proximal"):
        with pytest.raises(ValueError, match="inside the backward pass; use apply='loss'"):
            check_mode(optimizer, apply)


def test_a_privacy_engine_makes_the_gradients_anew() -> None:
    optimizer = made(of("DPOptimizer"))
    optimizer.original_optimizer, optimizer.noise_multiplier = optimizer, 1.0  # type: ignore[attr-defined]
    for apply in ("gradient", "loss"):
        with pytest.raises(ValueError, match="single examples; attach to its original_optimizer"):
            check_mode(optimizer, apply)


def test_lookahead_decays_and_makes_no_zeros() -> None:
    optimizer = made(of("Lookahead"))
    check_mode(optimizer, "decoupled")
    with pytest.raises(ValueError, match="slower weights"):
        check_mode(optimizer, "proximal", euclidean=True)


@pytest.mark.parametrize("lr", [None, "auto"])
def test_no_decay_without_a_learning_rate(lr: Any) -> None:
    optimizer = made(of("Relative"))
    optimizer.param_groups[0]["lr"] = lr
    what = r"no learning rate that is a number; use apply='gradient', or tell register_optimizer its rate$"
    with pytest.raises(ValueError, match=what):
        check_mode(optimizer, "decoupled")
    check_mode(optimizer, "gradient")


def test_an_estimate_beside_the_learning_rate() -> None:
    optimizer = made(of("Estimating"))
    optimizer.param_groups[0].update(d=1e-6, d0=1e-6)
    with pytest.raises(ValueError, match="those of an estimate"):
        check_mode(optimizer, "decoupled")
    known = made(of("Prodigy", "prodigyopt"))
    known.param_groups[0].update(d=1e-3, d0=1e-6, k=0, betas=(0.9, 0.99), use_bias_correction=False)
    group = known.param_groups[0]
    assert decay_rates(known, group, group["params"]) == [pytest.approx(1e-4)]
    group["use_bias_correction"] = True  # at the first step √(1 − 0.99)/(1 − 0.9)
    assert decay_rates(known, group, group["params"]) == [pytest.approx(1e-4)]
    group["k"] = 10**6
    group["betas"] = (0.5, 0.75)
    assert decay_rates(known, group, group["params"]) == [pytest.approx(1e-4)]
    group["k"] = 0
    assert decay_rates(known, group, group["params"]) == [pytest.approx(1e-4 * 0.5 / 0.5)]


def test_signs_and_rotations_have_no_step_and_say_so() -> None:
    for name, package, reason in (
        ("Lion", "lion_pytorch", "sign of its momentum"),
        ("Muon", "timm", "makes its steps orthogonal"),
        ("SOAP", "pytorch_optimizer", "rotated coordinates"),
        ("Adam8bit", "torchao", "rounds its state"),
    ):
        optimizer = made(of(name, package))
        with pytest.raises(
            ValueError, match=f"{reason}.*use apply='gradient' or apply='decoupled', or one of SGD"
        ):
            check_mode(optimizer, "proximal")
        check_mode(optimizer, "proximal", euclidean=True)  # for those who ask for it
        check_mode(optimizer, "decoupled")


def test_second_derivatives_need_the_term_in_the_loss() -> None:
    optimizer = made(of("Adahessian", "timm"))
    with pytest.raises(ValueError, match=r"second derivatives of the loss.*; use apply='loss'"):
        check_mode(optimizer, "gradient")
    for apply in ("loss", "decoupled"):
        check_mode(optimizer, apply)


def test_momentum_of_one_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"SGD: momentum=1.0 sums its steps without end"):
        check_mode(made(SGD, momentum=1.0), "proximal")
    check_mode(made(SGD, momentum=1.0), "gradient")


def test_every_group_is_asked() -> None:
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = SGD([{"params": [a]}, {"params": [b], "momentum": 1.0}], lr=0.1)
    with pytest.raises(ValueError, match="without end"):
        check_mode(optimizer, "proximal")


def test_an_unknown_optimizer_may_be_told_of() -> None:
    cls = of("Mine")
    optimizer = made(cls)
    for apply in ("gradient", "decoupled"):
        check_mode(optimizer, apply)
    with pytest.raises(
        ValueError, match=r"its step for each weight is not known.*or tell it to register_optimizer"
    ):
        check_mode(optimizer, "proximal")
    register_optimizer(
        cls, metric=lambda group, state: 2 * group["lr"], rate=lambda group, state: 3 * group["lr"]
    )
    check_mode(optimizer, "proximal")
    group = optimizer.param_groups[0]
    assert decay_rates(optimizer, group, group["params"]) == [pytest.approx(0.3)]
    known = facts_of(optimizer, group).metric
    assert callable(known) and known(group, [{}], group["params"])[0].dense() == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["somewhere.Mine", "somewhere.inside.Mine"])
def test_by_name_without_an_import(name: str) -> None:
    register_optimizer(name, metric=lambda group, state: state["eta"])
    assert "somewhere" not in sys.modules
    optimizer = made(of("Mine"))
    group = optimizer.param_groups[0]
    eta = torch.tensor([[1.0, 2.0], [4.0, 0.5]])
    known = facts_of(optimizer, group).metric
    assert callable(known)
    torch.testing.assert_close(known(group, [{"eta": eta}], group["params"])[0].dense(), eta)


def test_a_subclass_with_its_own_step_keeps_the_reasons_and_loses_the_formulas() -> None:
    lion = of("Lion", "timm")
    with pytest.raises(ValueError, match="sign of its momentum"):
        check_mode(made(of("Mine", base=lion)), "proximal")
    with pytest.raises(ValueError, match="is not known"):
        check_mode(made(of("Mine", base=Adam)), "proximal")


@pytest.mark.parametrize("name", [3, nn.Linear, Adam])
def test_only_classes_of_optimizers(name: Any) -> None:
    if name is Adam:
        with pytest.raises(ValueError, match=r"'Adam' does not say whose it is; give 'package.Class'"):
            register_optimizer("Adam")
    else:
        with pytest.raises(TypeError, match="is not a class of optimizers"):
            register_optimizer(name)


def test_adamw_beside_a_decoupled_l2_decays_twice() -> None:
    model = nn.Linear(2, 2)
    with pytest.warns(
        UserWarning,
        match=r"L2\(strength=0.1.*AdamW\(weight_decay=0.01\), its default, both decay weight; give",
    ):
        attach(model, AdamW(model.parameters()), L2(0.1), apply="decoupled")
    attach(model, AdamW(model.parameters()), L1(0.1), apply="decoupled")
    attach(
        model,
        AdamW([{"params": [model.bias]}, {"params": [model.weight], "weight_decay": 0.0}]),
        L2(0.1),
        apply="decoupled",
    )


def test_maximize_beside_the_groups_is_seen() -> None:
    model = nn.Linear(2, 2)
    optimizer = of("Climber")(model.parameters(), lr=0.1)
    del optimizer.param_groups[0]["maximize"]
    optimizer.maximize = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"Climber\(maximize=True\) climbs"):
        attach(model, optimizer, L1(0.1))


@pytest.mark.parametrize(
    ("name", "options", "known"),
    [
        ("timm.NAdamW", {}, True),
        ("timm.NAdamW", {"caution": True}, False),
        ("timm.Lars", {"weight_decay": 0.0}, True),
        ("timm.Lars", {"weight_decay": 0.1}, False),
        ("timm.Lamb", {"bias_correction": True, "grad_averaging": True}, True),
        ("timm.Lamb", {"bias_correction": False}, False),
        ("timm.Lamb", {"grad_averaging": False}, False),
        ("timm.Lamb", {"max_grad_norm": 1.0}, False),
        ("timm.AdamP", {"delta": 0.1}, False),
        ("timm.AdamP", {"delta": 0.0}, True),
        ("pytorch_optimizer.Lamb", {}, True),
        *(
            ("pytorch_optimizer.Lamb", {on: True}, False)
            for on in ("rectify", "adanorm", "adam_debias", "adam")
        ),
    ],
    ids=str,
)
def test_an_option_that_changes_the_step_makes_it_unknown(
    name: str, options: dict[str, Any], known: bool
) -> None:
    package, _, kind = name.partition(".")
    optimizer = made(of(kind, package))
    optimizer.param_groups[0].update(options)
    assert callable(facts_of(optimizer, optimizer.param_groups[0]).metric) == known


def test_a_lamb_that_clips_first_has_no_known_step() -> None:
    optimizer: Any = made(of("Lamb", "pytorch_optimizer"))
    assert callable(facts_of(optimizer, optimizer.param_groups[0]).metric)
    optimizer.pre_norm = True
    assert not callable(facts_of(optimizer, optimizer.param_groups[0]).metric)


@pytest.mark.parametrize("debias", [True, False])
def test_the_step_of_lamb_by_hand(debias: bool) -> None:
    """lr · trust · √(1 - β₂ᵗ) / (√v + ε), without the root where the biases are left as they are."""
    optimizer: Any = made(of("Lamb", "torch_optimizer"))
    optimizer.debias = debias
    group = {**optimizer.param_groups[0], "betas": (0.5, 0.9), "eps": 0.1}
    parameter = group["params"][0]
    state = {"step": 2, "trust_ratio": 0.5, "exp_avg_sq": torch.full((2, 2), 4.0)}
    metric: Any = facts_of(optimizer, group).metric
    (size,) = metric(group, [state], [parameter])
    root = math.sqrt(1.0 - 0.9**2) if debias else 1.0
    assert torch.allclose(size.on(size.tensors), torch.full((2, 2), 0.1 * 0.5 * root / 2.1))


def test_the_step_of_adabelief_by_hand() -> None:
    """lr / (√(s / (1 - β₂ᵗ)) + ε), of the variance s of the gradient."""
    optimizer: Any = made(of("AdaBelief", "torch_optimizer"))
    group = {**optimizer.param_groups[0], "betas": (0.5, 0.9), "eps": 0.1}
    state = {"step": 2, "exp_avg_var": torch.full((2, 2), 4.0)}
    metric: Any = facts_of(optimizer, group).metric
    (size,) = metric(group, [state], group["params"])
    wanted = 0.1 / (math.sqrt(4.0 / (1.0 - 0.9**2)) + 0.1)
    assert torch.allclose(size.on(size.tensors), torch.full((2, 2), wanted))


@pytest.mark.parametrize(
    "name", ["timm.Kron", "torchao.Adam8bit", "prodigyopt.Prodigy", "timm.MADGRAD", "pytorch_optimizer.LOMO"]
)
def test_a_package_without_a_metric_gets_a_reason_of_its_own(name: str) -> None:
    package, _, kind = name.partition(".")
    optimizer = made(of(kind, package))
    found = facts_of(optimizer, optimizer.param_groups[0])
    assert isinstance(found.metric, str) and found.metric != facts.Facts.metric
