"""Programs that ship with other packages, unchanged: their penalties fall, and nothing else changes.

Each program in ``programs/`` is written as its package's documentation teaches, and knows nothing of this
library.
"""

from dataclasses import dataclass

import pytest
import torch

from lightning_reg import L1, L2, GroupLasso, Linear
from lightning_reg.callbacks import DropoutScheduler, PenaltyCallback

from .recording import differences, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Program:
    package: str
    strength: float = 0.1
    drops: bool = True


CASES = {
    "chemistry": Program("chemprop"),
    "single_cell": Program("scvi"),
    "probabilistic_forecast": Program("gluonts.torch"),
    "forecast": Program("pytorch_forecasting"),
    "tabular": Program("pytorch_tabular"),
    "vision": Program("lightly", drops=False),
    "physics": Program("pina", drops=False),
    "image_classifier": Program("timm", strength=1.0),
    "text_classifier": Program("transformers"),
    "gan": Program("lightning", drops=False),
    "autoencoder": Program("lightning", drops=False),
}
REGULARIZATIONS = {
    "gradient": lambda strength: PenaltyCallback(L1(strength)),
    "proximal": lambda strength: PenaltyCallback(L1(strength), apply="proximal"),
    "decoupled": lambda strength: PenaltyCallback(L2(10 * strength), apply="decoupled"),
    "group lasso": lambda strength: PenaltyCallback(GroupLasso(strength), apply="proximal"),
}
IDLE = {
    "strength": lambda: PenaltyCallback(L1(0.0), log=False),
    "dropout": lambda: DropoutScheduler(1.0, relative=True),
}


@pytest.fixture(scope="module", params=CASES)
def plain(request, tmp_path_factory):
    pytest.importorskip(CASES[request.param].package)
    torch.set_num_threads(1)
    return request.param, run(request.param, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", REGULARIZATIONS)
def test_the_penalty_falls_and_nothing_else_changes(plain, name, tmp_path):
    program, without = plain
    callback = REGULARIZATIONS[name](CASES[program].strength)
    penalised = run(program, tmp_path, [callback])
    assert callback.penalty(penalised.module) < 0.97 * callback.penalty(without.module)
    assert penalised.logged - without.logged == {f"penalty/{callback.penalty.log_name}"}
    assert without.logged <= penalised.logged
    assert differences(penalised.interface, without.interface) == []


@pytest.mark.parametrize("name", IDLE)
def test_what_acts_with_nothing_changes_no_bit(plain, name, tmp_path):
    program, without = plain
    if name == "dropout" and not CASES[program].drops:
        pytest.skip("has no dropout")
    idle = run(program, tmp_path, [IDLE[name]()])
    assert all(torch.equal(idle.weights[key], weight) for key, weight in without.weights.items())
    assert differences(idle.interface, without.interface) == []


def test_dropout_is_scheduled_and_put_back(plain, tmp_path):
    program, without = plain
    callback = DropoutScheduler(Linear(0.0, 0.5, until=8))  # gluonts' runs have no known length
    if not CASES[program].drops:
        with pytest.raises(ValueError, match="has no place that drops"):
            run(program, tmp_path, [callback])
        return
    dropped = run(program, tmp_path, [callback])
    assert any(not torch.equal(dropped.weights[key], weight) for key, weight in without.weights.items())
    assert dropped.logged - without.logged == {"dropout/all"}
    assert without.logged <= dropped.logged
    assert differences(dropped.interface, without.interface) == []
