"""PEFT's adapters: what of them is a weight, and that frozen bases and scales stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_reg import L1, attach
from lightning_reg.select.parameters import named_parameters, why_not_selected

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.v(self.q(x))  # type: ignore[no-any-return]


ADAPTERS = [
    ("LoraConfig", {"r": 2}, {"q.lora_A.default.weight": "", "q.lora_B.default.weight": ""}),
    (
        "LoraConfig",
        {"r": 2, "use_dora": True},
        {
            "q.lora_A.default.weight": "",
            "q.lora_B.default.weight": "",
            "q.lora_magnitude_vector.default.weight": "fewer than two dimensions",
        },
    ),
    ("IA3Config", {"feedforward_modules": []}, {"q.ia3_l.default": "scale"}),
    (
        "AdaLoraConfig",
        {"init_r": 1, "target_r": 1, "total_step": 20},
        {"q.lora_A.default": "", "q.lora_B.default": "", "q.lora_E.default": ""},
    ),
]


@pytest.mark.parametrize(("config", "options", "rules"), ADAPTERS, ids=["LoRA", "DoRA", "IA3", "AdaLoRA"])
def test_what_of_an_adapter_is_a_weight(config: str, options: dict[str, Any], rules: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), getattr(peft, config)(target_modules=["q"], **options))
    trained = {s.name: s for s in named_parameters(model) if s.parameter.requires_grad}
    assert {n.removeprefix("base_model.model."): why_not_selected(s) for n, s in trained.items()} == rules
    before = {s.name: s.parameter.detach().clone() for s in named_parameters(model)}
    optimizer = torch.optim.SGD([s.parameter for s in trained.values()], lr=0.1)
    penalty = L1(5.0, [*(n for n, s in trained.items() if not why_not_selected(s))] or "*ia3*")
    attach(model, optimizer, penalty, apply="proximal")
    for s in trained.values():
        s.parameter.grad = torch.zeros_like(s.parameter)
    optimizer.step()
    for s in named_parameters(model):
        chosen = s.name in trained and (not why_not_selected(s) or "ia3" in s.name)
        small = before[s.name].abs() <= 0.5
        shrunk = torch.where(small, 0.0, before[s.name] - 0.5 * before[s.name].sign())
        torch.testing.assert_close(s.parameter.detach(), shrunk if chosen else before[s.name])
