"""The Hugging Face Trainer in as many processes as torchrun starts; rank 0 saves the weights."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_reg.hosts.hugging_face import PenaltyTrainerCallback
from tests.networks.test_hf_trainer import COUPLED, SCHEDULED, Net, trained, trainer

JOBS = [
    {"penalty": penalty, "apply": apply, "accumulate": accumulate}
    for (penalty, apply), accumulate in itertools.product(
        [("l1", "gradient"), ("coupled", "gradient"), ("l1", "decoupled"), ("l1", "proximal")], [1, 2]
    )
]


def train(folder: Path, processes: int, penalty: str, apply: Any, accumulate: int) -> Tensor:
    callback = PenaltyTrainerCallback({"l1": SCHEDULED, "coupled": COUPLED}[penalty], apply)
    options: dict[str, Any] = {"ddp_backend": "gloo"} if processes > 1 else {}
    return trained(
        trainer(
            folder,
            Net(),
            callback,
            per_device_train_batch_size=8 // processes,
            gradient_accumulation_steps=accumulate,
            max_grad_norm=0.0 if apply == "proximal" else 0.3,  # which warns in two processes
            **options,
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    results = [train(folder, 2, **job) for job in JOBS]
    if torch.distributed.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
