"""Zeros are held, the penalty stops, and the rest trains on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import L1, L2, Refit, attach


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=generator, dtype=torch.float64)
    y = x[:, :4].sum(1) + 0.1 * torch.randn(200, generator=generator, dtype=torch.float64)
    return x, y


def train(model: nn.Module, optimizer: Any, steps: int) -> None:
    x, y = problem()
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(x)[:, 0] - y).square().mean()).backward()
        optimizer.step()


def test_it_ends_at_least_squares_on_the_support() -> None:
    x, y = problem()
    model = nn.Linear(20, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    attach(model, optimizer, L1(0.2), apply="proximal", total_steps=400)
    attach(model, optimizer, Refit(0.5), total_steps=400)
    train(model, optimizer, 200)
    zero = (model.weight.detach() == 0)[0]
    assert int(zero.sum()) == 16
    train(model, optimizer, 200)
    assert torch.equal((model.weight.detach() == 0)[0], zero)
    fitted = torch.linalg.lstsq(x[:, ~zero], y[:, None]).solution[:, 0]
    torch.testing.assert_close(model.weight.detach()[0, ~zero], fitted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
    ids=["SGD", "AdamW"],
)
def test_alone_it_fine_tunes_a_pruned_network(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 1, dtype=torch.float64)
    model.weight.data[0, ::2] = 0.0
    optimizer = make(model.parameters())
    handle = attach(model, optimizer, Refit())
    before = model.weight.detach().clone()
    train(model, optimizer, 5)
    assert torch.equal(model.weight == 0, before == 0)
    assert bool((model.weight.detach() != before)[0, 1::2].all())
    handle.remove()
    train(model, optimizer, 1)
    assert not bool((model.weight == 0).any())


def test_penalties_without_zeros_go_on() -> None:
    model = nn.Linear(20, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    l1 = attach(model, optimizer, L1(0.2), apply="proximal")
    l2 = attach(model, optimizer, L2(0.1))
    attach(model, optimizer, Refit(3))
    found = []
    for _ in range(5):
        found.append((l1.strength, l2.strength))
        train(model, optimizer, 1)
    assert [pair[0] for pair in found] == [0.2, 0.2, 0.2, 0.0, 0.0]
    assert all(pair[1] == 0.1 for pair in found)


@pytest.mark.parametrize("begin", [1.5, -1])
def test_a_begin_that_is_none_is_refused(begin: Any) -> None:
    with pytest.raises(ValueError, match="begin="):
        Refit(begin)


def test_in_a_trainer_and_resumed_from_a_checkpoint(tmp_path: Any) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lightning_reg.callbacks import L1PenaltyCallback
    from lightning_reg.callbacks import Refit as Hold

    class Net(BoringModel):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.01)

        def train_dataloader(self) -> Any:
            data = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
            return torch.utils.data.DataLoader(data, batch_size=4)

    def fit(epochs: int, **how: Any) -> tuple[Net, Trainer]:
        torch.manual_seed(0)
        options = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
        quiet: Any = {**dict.fromkeys(options, False), "limit_val_batches": 0, "accelerator": "cpu"}
        callbacks = [L1PenaltyCallback(0.05, apply="proximal", log=False), Hold(24)]
        trainer = Trainer(max_epochs=epochs, callbacks=callbacks, **quiet)
        net = Net()
        trainer.fit(net, **how)
        return net, trainer

    whole, _ = fit(3)
    _, trainer = fit(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(3, ckpt_path=tmp_path / "half.ckpt")
    zeros = whole.layer.weight == 0
    assert 0.0 < float(zeros.float().mean()) < 1.0
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
