"""Two processes: one rate, masks as different as their seeds."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_reg import Linear
from lightning_reg.callbacks import DropoutScheduler
from tests.callbacks.dropout_nets import Net, trainer
from tests.distributed.launch import SERVER

pytestmark = pytest.mark.slow


class Record(Callback):
    """Each step's rate, its mask after a seed that all ranks share, and one after the rank's own."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def on_train_start(self, trainer, pl_module):
        torch.manual_seed(0)

    def on_train_batch_start(self, trainer, pl_module, *args):
        dropout, ones, state = pl_module.body[1], torch.ones(64), torch.get_rng_state()
        shared = (dropout(ones) == 0).tolist()
        torch.manual_seed(trainer.global_rank)
        own = (dropout(ones) == 0).tolist()
        torch.set_rng_state(state)
        self.seen.append((dropout.p, shared, own))

    def on_train_end(self, trainer, pl_module):
        (Path(self.folder) / f"{trainer.global_rank}.json").write_text(json.dumps(self.seen))


@pytest.mark.filterwarnings("ignore")
def test_the_same_rate_on_each_rank_and_masks_by_the_ranks_seed(tmp_path):
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 1)))
    callbacks = [DropoutScheduler(Linear(0.2, 0.8)), Record(str(tmp_path))]
    strategy = DDPStrategy(start_method=SERVER.get_start_method())
    trainer(*callbacks, devices=2, strategy=strategy, max_epochs=2).fit(net)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    (rates, shared, own), (other_rates, other_shared, other_own) = (zip(*seen, strict=True) for seen in ranks)
    assert rates == other_rates == pytest.approx([0.2 + 0.6 * i / 4 for i in range(4)])
    assert shared == other_shared
    assert all(mine != other for mine, other in zip(own, other_own, strict=True))
    assert net.body[1].p == 0.1
