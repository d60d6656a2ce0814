"""One member a family; all of them by ``python -m tests.third_party.dropout.zoo``."""

from importlib.util import find_spec

import pytest

from tests.third_party.dropout.zoo import run

pytestmark = pytest.mark.slow

FAMILIES = [
    ("timm", "Swin"),
    ("transformers", "BART"),
    ("torch_geometric", "GAT"),
    ("x_transformers", "encoder with dropped layers"),
    ("monai", "ViT"),
    ("vit_pytorch", "CaiT"),
    ("peft", "LoRA on GPT-2"),
    ("torchvision", "Swin"),
    ("torch", "transformer encoder"),
    ("stand-in", "experts by batch"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES, ids=" ".join)
def test_every_place_is_steered_or_named(name: tuple[str, str]) -> None:
    if find_spec(name[0]) is None and name[0] != "stand-in":
        pytest.skip(f"{name[0]} is not installed")
    outcome = run(name)
    assert outcome.wrong == [] and outcome.places > 0
    assert outcome.steered >= 0.9 * (outcome.steered + len(outcome.waiting))
