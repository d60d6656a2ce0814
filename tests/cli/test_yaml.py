"""Callbacks, penalties and schedules by class path in a LightningCLI config, in both namespaces."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import lightning_reg
from lightning_reg.callbacks import L1PenaltyCallback, PenaltyCallback

pytest.importorskip("jsonargparse")

# Lightning's own calls, as of 2.6
pytestmark = pytest.mark.filterwarnings(  # Lightning calls what jsonargparse is to drop
    r"ignore:[\s\S]*was deprecated in v4", r"ignore:[\s\S]*JsonargparseDeprecationWarning"
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "config.yaml"
OVERRIDES = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def no_arguments_of_pytest(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])  # LightningCLI warns of those beside its own


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def namespace(request):
    pytest.importorskip(request.param)
    return request.param


def net_of(namespace):
    """A module of this namespace whose parameters have the example's names."""
    boring = importlib.import_module(f"{namespace}.demos.boring_classes").BoringModel

    class Net(boring):
        def __init__(self):
            super().__init__()
            self.layer = None
            self.net = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

        def forward(self, x):
            return self.net(x)

    return Net


def cli(namespace, args, **kwargs):
    module = importlib.import_module(f"{namespace}.cli")
    return module.LightningCLI(
        net_of(namespace), args=args, save_config_callback=None, seed_everything_default=0, **kwargs
    )


def with_callback(class_path, **init_args):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callback = {"class_path": f"lightning_reg.callbacks.{class_path}", "init_args": init_args}
    return {"trainer": {**quiet, "accelerator": "cpu", "callbacks": [callback]}}


def ours(cli):
    return [callback for callback in cli.trainer.callbacks if hasattr(callback, "penalty")]


def test_the_example_parses_and_trains(namespace):
    done = cli(namespace, ["fit", f"--config={EXAMPLE}", *OVERRIDES])
    l1, elastic_net = ours(done)
    assert isinstance(l1, L1PenaltyCallback) and l1.penalty == lightning_reg.L1(1e-4)
    assert isinstance(elastic_net, PenaltyCallback) and elastic_net.apply == "proximal"
    assert elastic_net.penalty == lightning_reg.ElasticNet(
        lightning_reg.Cosine(0.0, 1e-3, until=0.5), select="*.0.weight", l1_ratio=0.9
    )
    assert done.trainer.global_step == 3


@pytest.mark.parametrize(
    "written, strength",
    [
        (1e-3, 1e-3),
        ("1e-3", 1e-3),  # YAML reads 1e-3 without a point as a string
        ({"class_path": "Constant", "init_args": {"value": 0.1}}, lightning_reg.Constant(0.1)),
        (
            {"class_path": "Linear", "init_args": {"start": 0, "end": 1, "begin": 10, "until": 200}},
            lightning_reg.Linear(0.0, 1.0, begin=10, until=200),
        ),
        (
            {"class_path": "Exponential", "init_args": {"start": 1e-5, "end": 1e-3, "until": 0.5}},
            lightning_reg.Exponential(1e-5, 1e-3, until=0.5),
        ),
        (
            {"class_path": "Polynomial", "init_args": {"start": 0.0, "end": 0.1, "power": 2.0}},
            lightning_reg.Polynomial(0.0, 0.1, power=2.0),
        ),
        (
            {"class_path": "MultiStep", "init_args": {"value": 0.1, "milestones": [0.5, 300]}},
            lightning_reg.MultiStep(0.1, (0.5, 300)),
        ),
        (
            {"class_path": "Piecewise", "init_args": {"points": [[0.0, 0.1], [0.5, 0.2]]}},
            lightning_reg.Piecewise(((0.0, 0.1), (0.5, 0.2))),
        ),
    ],
)
def test_every_kind_of_strength(written, strength):
    if isinstance(written, dict):
        written = {**written, "class_path": f"lightning_reg.{written['class_path']}"}
    done = cli("lightning.pytorch", with_callback("L1PenaltyCallback", strength=written), run=False)
    (callback,) = ours(done)
    assert callback.penalty.strength == strength
    positions = getattr(strength, "positions", ())
    # an integer is a number of steps and a float a share of the run, so the type counts
    assert list(map(type, getattr(callback.penalty.strength, "positions", ()))) == list(map(type, positions))


@pytest.mark.parametrize("name", ["L1", "L2", "L2Norm", "ElasticNet"])
def test_every_penalty(namespace, name):
    select = ["weights", "!*.bias"]
    penalty = {"class_path": f"lightning_reg.{name}", "init_args": {"strength": 0.5, "select": select}}
    (callback,) = ours(cli(namespace, with_callback("PenaltyCallback", penalty=penalty), run=False))
    assert callback.penalty == getattr(lightning_reg, name)(0.5, select=select)


@pytest.mark.parametrize("name", ["L1", "L2", "ElasticNet"])
def test_every_named_callback(namespace, name):
    arguments = {"strength": 0.5, "select": "net.*", "apply": "decoupled", "log": False, "name": "mine"}
    (callback,) = ours(cli(namespace, with_callback(f"{name}PenaltyCallback", **arguments), run=False))
    assert callback.penalty == getattr(lightning_reg, name)(0.5, select="net.*", name="mine")
    assert (callback.apply, callback.logs) == ("decoupled", False)


@pytest.mark.parametrize(
    "wrong", [{"strength": "strong"}, {"strength": -1.0}, {"strength": 1.0, "apply": "sideways"}]
)
def test_what_is_wrong_is_refused(wrong, capsys):
    with pytest.raises((SystemExit, ValueError)):
        cli("lightning.pytorch", with_callback("L1PenaltyCallback", **wrong), run=False)
