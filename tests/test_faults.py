"""What goes wrong around training costs no checkpoint, and the last one resumes bit for bit."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from lightning_reg.callbacks import RegularizationMonitor
from tests.distributed.launch import Launch
from tests.faults_program import FAULT_AT, DropNet, Signal, run
from tests.support import weights
from tests.turns import everyday

ROOT = Path(__file__).parents[1]
#: Of TargetSparsity: these runs are too short for its share.
pytestmark = pytest.mark.filterwarnings("ignore:.* after until=.*:UserWarning")


def last(folder: Path) -> Path:
    return max(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))


def trace(module: nn.Module) -> dict[str, Any]:
    """All that a callback could leave in a module."""
    return {
        "attributes": {name: sorted(vars(m)) for name, m in module.named_modules()},
        "classes": [type(m) for m in module.modules()],
        "rates": [m.p for m in module.modules() if isinstance(m, nn.Dropout)],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "on weights": [len(p._post_accumulate_grad_hooks or {}) for p in module.parameters()],
        "state": list(module.state_dict()),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The weights of a run without a fault."""
    return run(tmp_path_factory.mktemp("whole"))


# --- Ctrl-C ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c(whole: Tensor, tmp_path: Path) -> None:
    module, plain = DropNet(), DropNet()
    with pytest.raises(SystemExit):
        run(tmp_path / "plain", Signal(signal.SIGINT), module=plain, regularized=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(SystemExit):
        run(tmp_path, Signal(signal.SIGINT), module=module)
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert trace(module) == trace(plain)
    checkpoint = last(tmp_path)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 16
    averaged = saved["optimizer_states"][0]["state"][2]["lightning_reg/box_1"]
    assert bool(averaged.any()) and not bool(averaged.all()), "some weights are at a bound, in mid-window"
    assert torch.equal(run(tmp_path, module=module, ckpt=checkpoint), whole)


@pytest.mark.skipif(
    "save_on_exception" not in signature(ModelCheckpoint).parameters, reason="Lightning's own came later"
)
@pytest.mark.usefixtures("_interruptible")
def test_a_checkpoint_saved_on_the_way_out_holds_what_penalties_have_learned(tmp_path: Path) -> None:
    start = DropNet().net[3].weight.detach().clone()
    with pytest.raises(SystemExit):
        run(tmp_path, Signal(signal.SIGINT), save_on_exception=True)
    checkpoint = torch.load(last(tmp_path), weights_only=True)
    assert checkpoint["global_step"] == FAULT_AT
    learned = checkpoint["lightning_reg"]
    assert learned.keys() == {"l1_2", "l2_sp_1"}
    assert torch.equal(learned["l2_sp_1"]["net.3.weight"], start)
    assert int(learned["l1_2"]["target_sparsity"][-1]) >= 16, "the controller's last look at the weights"


# --- a checkpoint that is cut short ------------------------------------------------------------------


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("share", everyday(1, [0.5, 0.0, 0.99]))
def test_a_truncated_checkpoint(share: float, whole: Tensor, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, Signal(signal.SIGINT))
    broken = last(tmp_path)
    content = broken.read_bytes()
    broken.write_bytes(content[: int(share * len(content))])
    module = DropNet()
    before = weights(module)
    with (
        pytest.warns(UserWarning, match=r"epoch=1.ckpt is cut short; resume from an earlier one"),
        pytest.raises((OSError, EOFError, RuntimeError)),  # torch's words for it are of no help
    ):
        run(tmp_path, module=module, ckpt=broken)
    assert torch.equal(weights(module), before)
    assert torch.equal(run(tmp_path, module=module, ckpt=tmp_path / "epoch=0.ckpt"), whole)


# --- a full disk -------------------------------------------------------------------------------------

FULL = Path("/dev/full")  # every write to it fails as on a full disk


class Lines(Logger):
    """A logger that writes each record at once."""

    name, version = "lines", 0

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(name.startswith("sparsity") for name in metrics):  # the monitor's
            self.attempts += 1
            with FULL.open("w") as file:
                file.write(f"{step} {metrics}")

    def log_hyperparams(self, *_: Any) -> None:
        pass


def test_a_full_disk_while_the_monitor_logs(whole: Tensor, tmp_path: Path) -> None:
    monitor, logger = RegularizationMonitor(table=False), Lines()
    sentence = r"RegularizationMonitor cannot log to Lines any more: .*No space left on device"
    with pytest.warns(UserWarning, match=sentence) as caught:
        got = run(tmp_path, monitor, logger=logger, log_every_n_steps=1)
    said = [warning for warning in caught if "RegularizationMonitor" in str(warning.message)]
    assert len(said) == logger.attempts == 1, "said once, and then left alone"
    assert len(monitor.history) == 32, "the history goes on"
    assert torch.equal(got, whole) and last(tmp_path).stem == "epoch=3"


def test_a_full_disk_while_the_monitor_prints(
    whole: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = FULL.open("w")
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.warns(
        UserWarning, match=r"RegularizationMonitor cannot print its table: .*No space left on device"
    ):
        got = run(tmp_path, RegularizationMonitor(), log_every_n_steps=1)
    assert torch.equal(got, whole) and last(tmp_path).stem == "epoch=3"
    with contextlib.suppress(OSError):
        full.close()


# --- one of two processes killed ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.turns(2, 0)
def test_a_rank_killed_under_torchrun_then_resumed(tmp_path: Path) -> None:
    killed, uninterrupted = tmp_path / "killed", tmp_path / "whole"
    program = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    program += ["--nproc-per-node=2", "-m", "tests.faults_program"]
    program += [json.dumps([{"folder": str(killed), "kills": 1}])]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode != 0
    assert "Signal 9 (SIGKILL)" in run.stderr, run.stderr[-3000:]
    checkpoint = last(killed)
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 16
    jobs = [{"folder": str(killed), "ckpt": str(checkpoint)}, {"folder": str(uninterrupted)}]
    Launch("tests.faults_program", [jobs], 2, tmp_path, "resumed").succeed(240)
    assert torch.equal(torch.load(killed / "weights.pt"), torch.load(uninterrupted / "weights.pt"))


@pytest.mark.slow
@pytest.mark.turns(2, 1)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_rank_ends_with_an_error_by_itself(rank: int, tmp_path: Path) -> None:
    """With nobody to end it: gloo sees the connection close."""
    launch = Launch("tests.faults_program", [[{"folder": str(tmp_path), "kills": rank}]], 2, tmp_path, "rank")
    codes = launch.wait(240)
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] > 0
    log = launch.logs[1 - rank].read_text()
    assert re.search(r"RuntimeError: .*(Connection (closed|reset) by peer|gloo)", log), log[-3000:]
