"""``lightning-reg run``: scripts as they are, and what is attached to their Trainers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_reg import Linear
from lightning_reg.callbacks import L1PenaltyCallback, L2PenaltyCallback
from lightning_reg.cli.entry_point import callbacks
from lightning_reg.cli.main import main
from lightning_reg.hosts.requested import VARIABLE
from tests.support import Net, batches, fit, weights

pytest.importorskip("jsonargparse")
pytestmark = pytest.mark.filterwarnings("ignore")

L1 = ["run", "--l1", "1e-2", "--apply", "proximal"]

#: What a script says of how it runs; it trains nothing.
ABOUT = """
import json, os, sys
print(json.dumps([sys.argv, __file__, __name__, sys.path[0], os.getcwd(), __spec__ is None]))
sys.exit(3)
"""
#: Trains the network of tests.support, and saves its weights.
TRAIN = """
import sys, torch
from NAMESPACE import Callback, LightningModule, Trainer
from torch.nn.functional import mse_loss
from tests.support import QUIET, batches, network, tutorial_sgd

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()
    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[0]), batch[1])
    def train_dataloader(self):
        return batches(dtype=self.dtype)
    def configure_optimizers(self):
        return tutorial_sgd(self.parameters())

if __name__ == "__main__":
    given = [Callback()]
    for number in range(2):
        net = Net()
        trainer = Trainer(max_steps=20, devices=1, callbacks=given, **QUIET)
        trainer.fit(net)
        torch.save(net.state_dict(), f"{sys.argv[1]}-{number}.pt")
"""


#: Drops by known classes, by numbers of its own, and by one in its code; prints the shares dropped.
DROPS = """
import json, torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.functional import dropout
from tests.support import QUIET

class Path(nn.Module):
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob
    def forward(self, x):
        return x * (torch.rand(len(x), 1) >= self.drop_prob)

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.known, self.channels, self.path = nn.Dropout(0.1), nn.Dropout1d(0.1), Path(0.1)
        self.drop_last, self.settings = 0.5, {"dropout": 0.1}
        self.scale, self.shares = nn.Parameter(torch.ones(1)), []
    def training_step(self, batch, batch_idx):
        x = torch.ones(4000, 3)
        literal = dropout(x, 0.25, self.training)
        drops = [self.known(x), self.channels(x[..., None]), self.path(x),
                 dropout(x, self.settings["dropout"], self.training), literal]
        self.shares.append([(dropped == 0).float().mean().item() for dropped in drops])
        return self.scale.sum()
    def train_dataloader(self):
        return torch.ones(4, 1)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

torch.manual_seed(0)
net = Net()
Trainer(max_epochs=1, devices=1, **QUIET).fit(net)
built = [net.known.p, net.channels.p, net.path.drop_prob, net.settings["dropout"], net.drop_last]
print(json.dumps([net.shares, built]))
"""


def script(folder: Path, text: str, name: str = "script.py") -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


def trained(folder: Path, number: int = 0) -> torch.Tensor:
    state = torch.load(folder / f"out-{number}.pt", weights_only=True)
    return torch.cat([tensor.flatten() for tensor in state.values()])


@pytest.mark.parametrize("how", ["relative", "absolute", "module"])
def test_a_script_runs_as_python_runs_it(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inner").mkdir()
    file = script(tmp_path / "inner", ABOUT)
    monkeypatch.chdir(tmp_path)
    target = {"relative": ["inner/script.py"], "absolute": [file], "module": ["-m", "inner.script"]}[how]
    command = [*target, "--l1", "5", "--", "-m", "x"]
    plain = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    path, argv = list(sys.path), list(sys.argv)
    assert main([*L1, *command]) == plain.returncode == 3
    out, err = capfd.readouterr()
    assert json.loads(out) == json.loads(plain.stdout)
    assert err.strip() == f"lightning-reg run: {target[-1]} made no Trainer, so nothing was attached"
    assert (sys.path, sys.argv) == (path, argv)
    assert VARIABLE not in os.environ and callbacks() == []


@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_every_trainer_has_callbacks_of_its_own(
    namespace: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(namespace)
    file = script(tmp_path, TRAIN.replace("NAMESPACE", namespace))
    flags = ["--l2", "linear(0, 1e-2)", "--select", "net.*"]
    assert main([*L1, *flags, file, str(tmp_path / "out")]) == 0
    expected = Net()
    penalties = [
        L1PenaltyCallback(1e-2, "net.*", "proximal"),
        L2PenaltyCallback(Linear(0, 1e-2), "net.*", "proximal"),
    ]
    fit(expected, *penalties)
    assert (weights(expected) == 0).any()
    # the second Trainer was given the list to which Lightning had added the first's callbacks
    assert torch.equal(trained(tmp_path, 0), weights(expected))
    assert torch.equal(trained(tmp_path, 1), weights(expected))
    report = capfd.readouterr().err
    assert report.count("lightning-reg run: Net, 1 process, SingleDeviceStrategy") == 2
    assert report.count("l1 (proximal), l2 (proximal)") == 8  # four tensors, in each report


def test_callbacks_from_yaml_and_a_replaced_precision(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = script(tmp_path, TRAIN.replace("NAMESPACE", "lightning.pytorch"))
    config = script(
        tmp_path,
        """
callbacks:
  - class_path: L1PenaltyCallback
    init_args: {strength: 1e-2, apply: proximal}
  - class_path: mine.Extra
""",
        "callbacks.yaml",
    )
    script(
        tmp_path,
        """
from lightning.pytorch import Callback
class Extra(Callback):
    def on_fit_end(self, trainer, pl_module):
        print("extra", trainer.global_step)
""",
        "mine.py",  # beside the script, which is where the script would find it
    )
    options = ["--precision", "64-true", "--devices", "1"]
    assert main(["run", "--callbacks", config, *options, file, str(tmp_path / "out")]) == 0
    assert trained(tmp_path).dtype == torch.float64
    expected = Net()
    loader = batches(dtype=torch.float64)
    fit(expected, L1PenaltyCallback(1e-2, apply="proximal"), loader=loader, precision="64-true")
    assert torch.equal(trained(tmp_path), weights(expected))
    out, err = capfd.readouterr()
    assert out.count("extra 20") == 2
    assert "Trainer(precision='64-true') in place of the script's None" in err
    assert "Trainer(devices=" not in err  # it is what the script gives


#: A LightningCLI, and a module with something of everything to report on.
CLI = """
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

class Model(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(32, 4), torch.nn.Dropout(0.5), torch.nn.LayerNorm(4))
        self.layer.append(torch.nn.Linear(4, 2))
        self.frozen = torch.nn.Linear(2, 2)
        self.frozen.weight.requires_grad_(False)
        self.loose = torch.nn.Linear(2, 2)
    def configure_optimizers(self):
        return torch.optim.SGD([*self.layer.parameters(), self.frozen.weight], lr=0.1)

LightningCLI(Model, BoringDataModule, save_config_callback=None, seed_everything_default=0)
print("after")
"""
FIT = ["fit", "--trainer.max_steps=2", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
FIT += [
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=0",
]


@pytest.mark.parametrize("rich", [True, False])
def test_a_dry_run_reports_and_trains_nothing(
    rich: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    file = script(tmp_path, CLI)
    asked = ["--l1", "1e-3", "--dropout", "cosine(0.3, 0)", "--precision", "64-true"]
    assert main(["run", *asked, "--dry-run", file, *FIT]) == 0
    out, err = capfd.readouterr()
    assert "after" not in out and "max_steps" not in err
    assert "Trainer(precision='64-true') in place of the script's None" in err
    lines = [line.split(maxsplit=2) for line in err.splitlines()]
    parts = ("layer", "frozen", "loose")
    found = {line[0]: " ".join(line[2].split()) for line in lines if line and line[0].split(".")[0] in parts}
    assert found == {
        "layer.0.weight": "l1 (gradient)",
        "layer.0.bias": "nothing: bias",
        "layer.1.p": "all",
        "layer.2.weight": "nothing: normalization",
        "layer.2.bias": "nothing: normalization",
        "layer.3.weight": "l1 (gradient)",
        "layer.3.bias": "nothing: bias",
        "frozen.weight": "nothing: frozen",
        "frozen.bias": "nothing: bias",
        "loose.weight": "nothing: in no optimizer",
        "loose.bias": "nothing: bias",
    }
    assert "2 of 10 parameters are acted on, 136 weights" in err


def test_dropout_of_several_classes_and_of_numbers_that_only_a_forward_shows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning) as warned:
        assert main(["run", "--dropout", "linear(0.2, 0.8)", script(tmp_path, DROPS)]) == 0
    out, err = capfd.readouterr()
    shares, built = json.loads(out.splitlines()[-1])
    assert len(shares) == 4 and built == [0.1, 0.1, 0.1, 0.1, 0.5]
    for step, (*steered, literal) in enumerate(shares):
        rate = 0.2 + 0.15 * step
        assert steered == pytest.approx([rate] * 4, abs=5 * (rate * (1 - rate) / 4000) ** 0.5)
        assert literal == pytest.approx(0.25, abs=0.02)
    [said] = [str(w.message) for w in warned if "after the first epoch" in str(w.message)]
    assert "steered: known.p" in said and "not steered: drop_last" in said
    assert said.endswith("the root (Net): dropout with a rate of 0.25 in the code (perhaps drop_last)")
    rows = {line.split()[0]: line for line in err.splitlines() if line.strip()}
    assert "if a forward drops by it" in rows["path.drop_prob"] and "if" not in rows["known.p"]


def test_a_refusal_is_one_line_and_a_script_error_is_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = script(tmp_path, CLI)
    assert main([*L1, "--select", "leyer.*", file, *FIT]) == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    sentence = "select='leyer.*' matches none of the 10 parameters of Model; did you mean"
    assert err.splitlines()[-1].startswith(f"lightning-reg run: {sentence}")
    file = script(tmp_path, "def wrong():\n    raise ValueError('mine')\nwrong()\n")
    assert main([*L1, file]) == 1
    err = capfd.readouterr().err
    assert f'File "{file}", line 3, in <module>' in err and "ValueError: mine" in err
    assert "lightning_reg" not in err


def test_a_search_attached_to_a_run_is_not_attached_to_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = TRAIN.replace("NAMESPACE", "lightning.pytorch").replace("range(2)", "range(1)")
    text = text.replace("trainer.fit(net)", "trainer.fit(net, batches(), batches())")
    text = text.replace("    def train_d", "    validation_step = training_step\n    def train_d")
    file = script(tmp_path, text)
    options = {"points": 3, "epochs": 1, "trainer": {"accelerator": "cpu"}}
    finder = {"class_path": "StrengthFinder", "init_args": {"options": options}}
    config = script(tmp_path, json.dumps([finder, {"class_path": "RegularizationMonitor"}]), "callbacks.yaml")
    assert main([*L1, "--callbacks", config, file, str(tmp_path / "out")]) == 0
    err = capfd.readouterr().err
    assert err.count("lightning-reg run: Net") == 1
    assert "attached StrengthFinder(...)\n" in err and " object at 0x" not in err
    assert err.count("RegularizationMonitor") == 1, "it looks at parameters and acts on none"


def test_processes_that_options_would_not_reach(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = TRAIN.replace("NAMESPACE", "lightning.pytorch").replace("devices=1", "devices=2, strategy='ddp'")
    assert main([*L1, "--precision", "64-true", script(tmp_path, text), str(tmp_path / "out")]) == 1
    err = capfd.readouterr().err
    assert "the script's Trainer starts 2 processes by itself, which --precision would not reach" in err
    assert "give --devices 2 as well" in err


def test_a_script_that_never_fits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = script(
        tmp_path, "from lightning.pytorch import Trainer\nTrainer(accelerator='cpu', logger=False)\n"
    )
    assert main([*L1, file]) == 0
    assert "script.py started no fit, so nothing was regularized" in capfd.readouterr().err
