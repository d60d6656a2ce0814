"""Programs that ship with other packages, unchanged: their penalties fall, and nothing else changes.

Each program in ``programs/`` is written as its package's documentation teaches, and knows nothing of this
library.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lightning_reg import L1, L2, GroupLasso, Linear
from lightning_reg.callbacks import DropoutScheduler, L1PenaltyCallback, PenaltyCallback
from lightning_reg.cli.main import main
from tests.turns import part_of, turn

from .recording import PROGRAMS, checkpoint_structure, differences, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Program:
    package: str
    strength: float = 0.1
    drops: bool = True
    in_a_process_of_its_own: bool = False


CASES = {
    "chemistry": Program("chemprop"),
    "single_cell": Program("scvi"),
    "probabilistic_forecast": Program("gluonts.torch"),
    "forecast": Program("pytorch_forecasting"),
    "tabular": Program("pytorch_tabular", in_a_process_of_its_own=True),
    "vision": Program("lightly", drops=False),
    "physics": Program("pina", drops=False),
    "image_classifier": Program("timm", strength=1.0),
    "text_classifier": Program("transformers"),
    "gan": Program("lightning", drops=False),
    "autoencoder": Program("lightning", drops=False, in_a_process_of_its_own=True),
}
REGULARIZATIONS = {
    "gradient": lambda strength: PenaltyCallback(L1(strength)),
    "proximal": lambda strength: PenaltyCallback(L1(strength), apply="proximal"),
    "decoupled": lambda strength: PenaltyCallback(L2(10 * strength), apply="decoupled"),
    "group lasso": lambda strength: PenaltyCallback(GroupLasso(strength), apply="proximal"),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in part_of(list(CASES), 3, turn())
    ],
)
def plain(request, tmp_path_factory):
    pytest.importorskip(CASES[request.param].package)
    torch.set_num_threads(1)
    return request.param, run(request.param, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", part_of(list(REGULARIZATIONS), 4, turn()))
def test_the_penalty_falls_and_nothing_else_changes(plain, name, tmp_path):
    program, without = plain
    callback = REGULARIZATIONS[name](CASES[program].strength)
    penalized = run(program, tmp_path, [callback])
    assert callback.penalty(penalized.module) < 0.97 * callback.penalty(without.module)
    assert penalized.logged - without.logged == {f"penalty/{callback.penalty.log_name}"}
    assert without.logged <= penalized.logged
    assert differences(penalized.interface, without.interface) == []


def test_what_acts_with_nothing_changes_no_bit(plain, tmp_path):
    program, without = plain
    callbacks = [PenaltyCallback(L1(0.0), log=False)]
    if CASES[program].drops:  # looks at the first batch, and then leaves all rates as built
        callbacks.append(DropoutScheduler(1.0, relative=True))
    idle = run(program, tmp_path, callbacks)
    assert all(torch.equal(idle.weights[key], weight) for key, weight in without.weights.items())
    assert differences(idle.interface, without.interface) == []


def test_dropout_is_scheduled_and_put_back(plain, tmp_path):
    program, without = plain
    callback = DropoutScheduler(Linear(0.0, 0.5, until=8))  # in steps: gluonts' runs have no known length
    if not CASES[program].drops:
        with pytest.raises(ValueError, match="has no place that drops"):
            run(program, tmp_path, [callback])
        return
    dropped = run(program, tmp_path, [callback])
    assert any(not torch.equal(dropped.weights[key], weight) for key, weight in without.weights.items())
    assert dropped.logged - without.logged == {"dropout/all"}
    assert without.logged <= dropped.logged
    assert differences(dropped.interface, without.interface) == []


def test_the_command_does_what_the_callbacks_do(plain, tmp_path, monkeypatch, capfd):
    program, without = plain
    case = CASES[program]
    callbacks = [L1PenaltyCallback(case.strength), *([DropoutScheduler(0.3)] if case.drops else [])]
    expected = run(program, tmp_path / "callbacks", callbacks)
    options = ["--l1", str(case.strength), *(["--dropout", "0.3"] if case.drops else [])]
    command = ["run", *options, str(PROGRAMS / f"{program}.py")]
    folder = tmp_path / "command"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if case.in_a_process_of_its_own:
        monkeypatch.setenv("PYTHONPATH", str(PROGRAMS.with_name("torchvision_operators")))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        status = subprocess.run([Path(sys.executable).with_name("lightning-reg"), *command]).returncode
    else:  # saves importing everything again
        status = main(command)
    said = capfd.readouterr().err
    assert status == 0, said
    assert "l1 (gradient)" in said
    checkpoint = torch.load("final.ckpt", weights_only=False)
    assert checkpoint["state_dict"].keys() == expected.weights.keys()
    assert all(torch.equal(checkpoint["state_dict"][key], weight) for key, weight in expected.weights.items())
    assert differences(checkpoint_structure(checkpoint), without.interface["checkpoint"]) == []
