"""Channels of the residual stream of transformers' models, from finding them to cutting them."""

from __future__ import annotations

import pytest
import torch

from lightning_reg import Units, compact

transformers = pytest.importorskip("transformers")
pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("tied", [False, True])
def test_llamas_stream_is_cut(tied: bool) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    example = {"input_ids": torch.randint(50, (2, 6)), "use_cache": False}
    stream = Units(example, stream=True).find(model)[0]
    assert {name: layout.keep for name, layout in stream.items()} == {  # type: ignore[attr-defined]
        "model.embed_tokens.weight": (1,),
        "model.layers.0.self_attn.o_proj.weight": (0,),
        "model.layers.0.mlp.down_proj.weight": (0,),
    }
    by_name = dict(model.named_parameters())
    with torch.no_grad():
        for name, layout in stream.items():
            by_name[name].movedim(layout.keep[0], 0)[::4] = 0.0  # type: ignore[attr-defined]
    smaller = compact(model, example)
    assert smaller.model.embed_tokens.embedding_dim == 12
    assert (smaller.lm_head.weight is smaller.model.embed_tokens.weight) == tied
    tokens = torch.randint(50, (3, 6))
    torch.testing.assert_close(smaller(tokens).logits, model(tokens).logits, rtol=0, atol=1e-6)


def test_units_of_phi3_come_to_an_end() -> None:
    """Halves of its heads change places, which the package would follow without an end."""
    config = transformers.Phi3Config(
        vocab_size=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    model = transformers.Phi3ForCausalLM(config).eval()
    found = Units({"input_ids": torch.randint(3, 60, (2, 9))}).find(model)
    assert not any("qkv_proj" in name for forms in found for name in forms)
