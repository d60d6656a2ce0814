"""The Hugging Face Trainer and a plain loop in one process or two; rank 0 saves what came of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from lightning_reg import Linear, schedule_dropout
from lightning_reg.hosts.hugging_face import PenaltyTrainerCallback
from lightning_reg.hosts.hugging_face_dropout import DropoutTrainerCallback
from tests.dropout.test_plain import Own
from tests.networks import test_hf_dropout
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


class Record(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """The rates that each step of the Trainer has run with."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        net = getattr(model, "module", model)
        self.rates.append((net.drop.p, net.hidden_drop))


def dropout_rates(folder: Path, processes: int) -> dict[str, list[tuple[float, float]]]:
    """The rates of each step, of a known place and of a number, and at last as they were built.

    As plain floats: a pickle of a steered rate is the built one.
    """
    options: dict[str, Any] = {"ddp_backend": "gloo"} if processes > 1 else {}
    net, record, ramp = test_hf_dropout.Net(), Record(), Linear(0.0, 0.8)
    options["per_device_train_batch_size"] = 8 // processes
    test_hf_dropout.run(folder, net, DropoutTrainerCallback(ramp), record, **options).train()
    own = Own()
    model: nn.Module = nn.Sequential(nn.Linear(4, 4), own)
    model = DistributedDataParallel(model) if processes > 1 else model
    handle, plain = schedule_dropout(model, ramp, total_steps=4), []
    for _ in range(4):
        plain.append((own.drop.p, float(own.settings["dropout"])))
        model(torch.ones(2, 4)).sum().backward()
        handle.step()
    handle.remove()
    return {
        "trainer": [*record.rates, (net.drop.p, net.hidden_drop)],
        "loop": [*plain, (own.drop.p, float(own.settings["dropout"]))],
    }


def main(out: str) -> None:
    torch.set_num_threads(1)
    folder = Path(out)
    results = [train(folder, 2, **job) for job in JOBS]
    rates: list[Any] = [None, None]
    torch.distributed.all_gather_object(rates, dropout_rates(folder, 2))
    if torch.distributed.get_rank() == 0:
        torch.save((results, rates), folder / "results.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
