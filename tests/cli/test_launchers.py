"""``examples/train.py``, the same file under every launcher; those of two processes take turns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.turns import part_of, turn

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = [str(ROOT / "examples" / "train.py"), "--epochs", "3"]
#: The same penalty, from outside.
ATTACHED = ["--l1", "5e-4", "--apply", "proximal"]
WITHOUT = ["--strength", "0"]


def tool(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", module, *arguments]


def fabric(*arguments: str) -> list[str]:
    """``fabric run`` with these arguments."""
    return tool("lightning.fabric.cli", "--accelerator", "cpu", "--main-port", str(free_port()), *arguments)


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "stderr.txt").open("a") as err:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=err, text=True
        )


def printed(process: subprocess.Popen[str], folder: Path) -> str:
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, (folder / "stderr.txt").read_text()[-3000:]
    return "".join(re.findall(r"validation accuracy .*", out))


def run(command: list[str], folder: Path) -> str:
    return printed(start(command, folder), folder)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What two processes of ``torchrun`` print."""
    two = tool("torch.distributed.run", "--standalone", "--nproc-per-node=2", *EXAMPLE)
    return run(two, tmp_path_factory.mktemp("torchrun"))


@pytest.mark.turns(3, 0)
def test_one_process(tmp_path: Path) -> None:
    plain = run([sys.executable, *EXAMPLE], tmp_path)
    assert re.fullmatch(r"validation accuracy 9\d\.\d%, zeros [1-9]\d\.\d%", plain)
    assert run(ours(*ATTACHED, *EXAMPLE, *WITHOUT), tmp_path) == plain


def ours(*arguments: str) -> list[str]:
    """``lightning-reg run`` with these arguments."""
    return tool("lightning_reg.cli.main", "run", *arguments)


TWO = ["--devices", "2", "--strategy", "ddp"]
#: What starts two processes, and how often it reports them and the strategy in place of the script's.
LAUNCHERS: dict[str, tuple[Callable[[], list[str]], int, int]] = {
    "Lightning starts the second": (lambda: [sys.executable, *EXAMPLE, *TWO], 0, 0),
    "fabric": (lambda: fabric(*TWO, *EXAMPLE), 0, 0),
    "lightning-reg": (lambda: ours(*TWO, *ATTACHED, *EXAMPLE, *WITHOUT), 1, 1),
    # what is attached reaches a process that the script's own Trainer starts
    "the script, under lightning-reg": (lambda: ours(*ATTACHED, *EXAMPLE, *WITHOUT, *TWO), 1, 0),
    # and processes that another launcher has started
    "lightning-reg under torchrun": (
        lambda: tool(
            "torch.distributed.run",
            *("--standalone", "--nproc-per-node=2", "-m", "lightning_reg.cli.main", "run"),
            *(*ATTACHED, *EXAMPLE, *WITHOUT),
        ),
        1,
        0,
    ),
}


@pytest.mark.xdist_group("torchrun")
@pytest.mark.parametrize("launcher", part_of(list(LAUNCHERS), 5, turn()))
def test_two_processes(launcher: str, torchrun: str, tmp_path: Path) -> None:
    command, reports, strategies = LAUNCHERS[launcher]
    assert re.fullmatch(r"validation accuracy [89]\d\.\d%, zeros [1-9]\d\.\d%", torchrun)
    assert run(command(), tmp_path) == torchrun
    report = (tmp_path / "stderr.txt").read_text()
    # rank 0 alone reports, and torchelastic says devices= to the script
    assert report.count("lightning-reg run: Classifier, 2 processes, DDPStrategy") == reports
    assert report.count("Trainer(devices=2) in place of the script's 1") == 0
    assert report.count("Trainer(strategy='ddp') in place of the script's 'auto'") == strategies


@pytest.mark.xdist_group("torchrun")
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("torchrun", marks=pytest.mark.turns(3, 1)),
        pytest.param("lightning-reg", marks=pytest.mark.turns(3, 2)),
    ],
)
def test_two_nodes(launcher: str, torchrun: str, tmp_path: Path) -> None:
    """Two agents on this machine, of one process each, are two processes."""
    port = str(free_port())
    address = ("--master-addr", "127.0.0.1", "--master-port", port)
    nodes = ["--num-nodes", "2", "--devices", "1", "--strategy", "ddp", "--main-port", port]
    agents = {
        "torchrun": lambda rank: tool(
            "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", *address, *EXAMPLE
        ),
        "lightning-reg": lambda rank: ours(*nodes, "--node-rank", str(rank), *ATTACHED, *EXAMPLE, *WITHOUT),
    }[launcher]
    processes = [start(agents(rank), tmp_path) for rank in range(2)]
    assert "".join(printed(process, tmp_path) for process in processes) == torchrun


@pytest.mark.turns(3, 1)
def test_the_exit_status_is_the_scripts_through_torchelastic(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nsys.exit(7 if os.environ['RANK'] == '1' else 0)\n")
    command = ours("--devices", "2", *ATTACHED, str(script))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 7
    assert f"{script} made no Trainer, so nothing was attached" in ended.stderr


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp", marks=pytest.mark.turns(3, 2)),
        pytest.param("ddp_spawn", marks=pytest.mark.turns(3, 0)),
    ],
)
def test_a_dry_run_of_two_processes_ends_them_both(strategy: str) -> None:
    command = ours("--devices", "2", *ATTACHED, "--strategy", strategy, "--dry-run", *EXAMPLE)
    dry = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert dry.returncode == 0, dry.stderr[-3000:]
    assert "net.0.weight" in dry.stderr and "validation accuracy" not in dry.stdout
