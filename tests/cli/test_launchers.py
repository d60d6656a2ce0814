"""``examples/train.py``, the same file under every launcher."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port

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
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (folder / "stderr.txt").read_text()[-3000:]
    return "".join(re.findall(r"validation accuracy .*", out))


def run(command: list[str], folder: Path) -> str:
    return printed(start(command, folder), folder)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What two processes of ``torchrun`` print."""
    two = tool("torch.distributed.run", "--standalone", "--nproc-per-node=2", *EXAMPLE)
    return run(two, tmp_path_factory.mktemp("torchrun"))


def test_one_process(tmp_path: Path) -> None:
    plain = run([sys.executable, *EXAMPLE], tmp_path)
    assert re.fullmatch(r"validation accuracy 9\d\.\d%, zeros [1-9]\d\.\d%", plain)
    outside = tool("lightning_reg.cli.main", "run", *ATTACHED, *EXAMPLE, *WITHOUT)
    assert run(outside, tmp_path) == plain


@pytest.mark.xdist_group("torchrun")
def test_two_processes(torchrun: str, tmp_path: Path) -> None:
    two = ["--devices", "2", "--strategy", "ddp"]
    launched = [
        [sys.executable, *EXAMPLE, *two],  # Lightning starts the second
        fabric(*two, *EXAMPLE),
        tool("lightning_reg.cli.main", "run", *two, *ATTACHED, *EXAMPLE, *WITHOUT),
        # what is attached reaches a process that the script's own Trainer starts
        tool("lightning_reg.cli.main", "run", *ATTACHED, *EXAMPLE, *WITHOUT, *two),
        # and processes that another launcher has started
        tool(
            "torch.distributed.run",
            *("--standalone", "--nproc-per-node=2", "-m", "lightning_reg.cli.main", "run"),
            *(*ATTACHED, *EXAMPLE, *WITHOUT),
        ),
    ]
    said = [run(command, tmp_path) for command in launched]
    assert re.fullmatch(r"validation accuracy [89]\d\.\d%, zeros [1-9]\d\.\d%", torchrun)
    assert said == [torchrun] * len(launched)
    report = (tmp_path / "stderr.txt").read_text()
    assert (
        report.count("lightning-reg run: Classifier, 2 processes, DDPStrategy") == 3
    )  # rank 0 alone reports
    assert (
        report.count("Trainer(devices=2) in place of the script's 1") == 0
    )  # torchelastic says it to the script
    assert report.count("Trainer(strategy='ddp') in place of the script's 'auto'") == 1


@pytest.mark.xdist_group("torchrun")
def test_two_nodes(torchrun: str, tmp_path: Path) -> None:
    """Two agents on this machine, of one process each, are two processes."""
    port = str(free_port())
    address = ("--master-addr", "127.0.0.1", "--master-port", port)
    agents = [
        tool("torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", *address, *EXAMPLE)
        for rank in range(2)
    ]
    assert together(agents, tmp_path) == torchrun
    port = str(free_port())
    nodes = ["--num-nodes", "2", "--devices", "1", "--strategy", "ddp", "--main-port", port]
    ours = [
        tool("lightning_reg.cli.main", "run", *nodes, "--node-rank", str(rank), *ATTACHED, *EXAMPLE, *WITHOUT)
        for rank in range(2)
    ]
    assert together(ours, tmp_path) == torchrun


def test_the_exit_status_is_the_scripts(tmp_path: Path) -> None:
    """Through torchelastic; and a dry run of two processes ends them both."""
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nsys.exit(7 if os.environ['RANK'] == '1' else 0)\n")
    two = tool("lightning_reg.cli.main", "run", "--devices", "2", *ATTACHED)
    ended = subprocess.run([*two, str(script)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 7
    assert f"{script} made no Trainer, so nothing was attached" in ended.stderr
    for strategy in ("ddp", "ddp_spawn"):
        dry = subprocess.run(
            [*two, "--strategy", strategy, "--dry-run", *EXAMPLE], capture_output=True, text=True, timeout=300
        )
        assert dry.returncode == 0, dry.stderr[-3000:]
        assert "net.0.weight" in dry.stderr and "validation accuracy" not in dry.stdout


def together(agents: list[list[str]], folder: Path) -> str:
    processes = [start(agent, folder) for agent in agents]
    return "".join(printed(process, folder) for process in processes)
