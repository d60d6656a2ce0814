"""Two processes: one rate, masks as different as their seeds."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_reg import Linear
from lightning_reg.callbacks import DropoutScheduler
from tests.callbacks.dropout_nets import Net, trainer

pytestmark = pytest.mark.slow


class Record(Callback):
    def __init__(self, folder, seed_by_rank):
        self.folder, self.seed_by_rank, self.seen = folder, seed_by_rank, []

    def on_train_start(self, trainer, pl_module):
        torch.manual_seed(trainer.global_rank if self.seed_by_rank else 0)

    def on_train_batch_start(self, trainer, pl_module, *args):
        state = torch.get_rng_state()
        mask = (pl_module.body[1](torch.ones(64)) == 0).tolist()
        torch.set_rng_state(state)
        self.seen.append((pl_module.body[1].p, mask))

    def on_train_end(self, trainer, pl_module):
        (Path(self.folder) / f"{trainer.global_rank}.json").write_text(json.dumps(self.seen))


@pytest.mark.parametrize("seed_by_rank", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_the_same_rate_on_each_rank_and_masks_by_the_ranks_seed(tmp_path, seed_by_rank):
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 1)))
    callbacks = [DropoutScheduler(Linear(0.2, 0.8)), Record(str(tmp_path), seed_by_rank)]
    trainer(*callbacks, devices=2, strategy="ddp_spawn", max_epochs=2).fit(net)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [rate for rate, _ in first] == [rate for rate, _ in second]
    assert [rate for rate, _ in first] == pytest.approx([0.2 + 0.6 * i / 4 for i in range(4)])
    assert ([mask for _, mask in first] != [mask for _, mask in second]) is seed_by_rank
    assert net.body[1].p == 0.1
