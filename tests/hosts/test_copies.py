"""What is attached goes with copies of model and optimizer, or says that it does not."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lightning_reg import L1, L2, Attachment, Linear, attach

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, optimizer: Optimizer, times: int) -> Tensor:
    for _ in range(times):
        optimizer.zero_grad()
        (model(X) - X[:, :2]).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def attached() -> tuple[nn.Module, Optimizer, list[Attachment]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    strength = Linear(0.0, 0.3)
    first = attach(model, optimizer, L1(strength), apply="proximal", total_steps=12)
    return model, optimizer, [first, attach(model, optimizer, L2(0.1))]


@pytest.mark.parametrize("order", ["model first", "with the handles", "in a dict"])
def test_a_copy_trains_as_the_original_does(order: str) -> None:
    model, optimizer, handles = attached()
    step(model, optimizer, 4)
    if order == "model first":
        twin, other = copy.deepcopy((model, optimizer))
    elif order == "with the handles":
        copied, twin, other = copy.deepcopy((handles, model, optimizer))
        assert [handle.step for handle in copied] == [4, 4]
        assert repr(copied[0]) == repr(handles[0])
    else:
        both = copy.deepcopy({"model": model, "optimizer": optimizer})
        twin, other = both["model"], both["optimizer"]  # type: ignore[assignment]
    expected = step(model, optimizer, 8)
    assert torch.equal(step(twin, other, 8), expected)
    if order == "with the handles":
        for handle in copied:
            handle.remove()
        assert not other._optimizer_step_post_hooks and "__deepcopy__" not in vars(other)
        assert handles[0].step == 12 and optimizer._optimizer_step_post_hooks
    copy.deepcopy((twin, other))  # a copy of a copy


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"]
)
def test_an_optimizer_alone_says_that_nothing_goes_with_it(how: Any) -> None:
    _, optimizer, handles = attached()
    with pytest.warns(UserWarning, match=r"of AdamW alone has nothing attached to it, as Attachment\(L1"):
        how(optimizer)
    for handle in handles:
        handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        how(optimizer)
    assert not {"__deepcopy__", "__reduce_ex__"} & set(vars(optimizer))
