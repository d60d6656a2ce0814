"""Sites of real networks, by name, as written down from each one's source; random weights, small sizes."""

import pytest
import timm
import torch
import transformers
from scipy.stats import binomtest
from timm.layers import DropBlock2d, DropPath
from torchvision.ops import StochasticDepth

from lightning_reg.dropout import find_sites
from lightning_reg.dropout.rules import Rates
from lightning_reg.dropout.steering import rule_for, steer
from lightning_reg.dropout.watch import Watch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

IDS = torch.arange(10).view(2, 5)
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def image(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def vit_tiny():
    net = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=2,
        drop_rate=0.1,
        pos_drop_rate=0.05,
        proj_drop_rate=0.15,
        attn_drop_rate=0.2,
        drop_path_rate=0.3,
    )
    return net, lambda: net(image(32))


VIT_TINY = {
    "pos_drop.p": "element",
    **{f"blocks.{i}.attn.attn_drop.p": "attention" for i in (0, 1)},  # read by fused attention, never called
    **{f"blocks.{i}.attn.proj_drop.p": "element" for i in (0, 1)},
    **{f"blocks.{i}.mlp.drop{j}.p": "element" for i in (0, 1) for j in (1, 2)},
    # the first block's rate is 0, and timm puts an Identity there
    "blocks.1.drop_path1.drop_prob": "row",
    "blocks.1.drop_path2.drop_prob": "row",
    "head_drop.p": "element",
}


def convnext_atto():
    net = timm.create_model("convnext_atto", drop_rate=0.1, drop_path_rate=0.3)
    return net, lambda: net(image(64))


CONVNEXT_DEPTHS = (2, 2, 6, 2)
CONVNEXT_ATTO = {
    **{
        f"stages.{s}.blocks.{b}.mlp.drop{j}.p": "element"  # built at 0
        for s, depth in enumerate(CONVNEXT_DEPTHS)
        for b in range(depth)
        for j in (1, 2)
    },
    **{
        f"stages.{s}.blocks.{b}.drop_path.drop_prob": "row"
        for s, depth in enumerate(CONVNEXT_DEPTHS)
        for b in range(depth)
        if (s, b) != (0, 0)  # rate 0: Identity
    },
    "head.drop.p": "element",  # the root's drop_rate is dead
}


def efficientnet_b0():
    net = timm.create_model("efficientnet_b0", drop_rate=0.1, drop_path_rate=0.3)
    return net, lambda: net(image(64))


EFFICIENTNET_REPEATS = (1, 2, 2, 3, 3, 4, 1)
EFFICIENTNET_B0 = {
    "drop_rate": "element",  # F.dropout in forward_head
    **{
        f"blocks.{s}.{b}.drop_path.drop_prob": "row"
        for s, repeats in enumerate(EFFICIENTNET_REPEATS)
        for b in range(1, repeats)  # the first of a stage has no shortcut, and does not call its DropPath
    },
}


def resnet18():
    net = timm.create_model("resnet18", drop_rate=0.1, drop_path_rate=0.3, drop_block_rate=0.1)
    return net, lambda: net(image(64))


RESNET18 = {
    "drop_rate": "element",  # F.dropout in forward_head
    **{f"layer{s}.{b}.drop_block.drop_prob": "block" for s in (3, 4) for b in (0, 1)},
    **{f"layer{s}.{b}.drop_path.drop_prob": "row" for s in (1, 2, 3, 4) for b in (0, 1) if (s, b) != (1, 0)},
}


def gpt2():
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32)
    net = transformers.GPT2LMHeadModel(config)
    return net, lambda: net(input_ids=IDS).logits


GPT2 = {
    "transformer.drop.p": "element",
    **{f"transformer.h.{i}.attn.attn_dropout.p": "attention" for i in (0, 1)},  # read by SDPA, never called
    **{f"transformer.h.{i}.attn.resid_dropout.p": "element" for i in (0, 1)},
    **{f"transformer.h.{i}.mlp.dropout.p": "element" for i in (0, 1)},
}


def bert():
    net = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **SMALL))
    return net, lambda: net(input_ids=IDS).logits


BERT = {
    "bert.embeddings.dropout.p": "element",
    **{f"bert.encoder.layer.{i}.attention.self.dropout.p": "attention" for i in (0, 1)},
    **{f"bert.encoder.layer.{i}.attention.output.dropout.p": "element" for i in (0, 1)},
    **{f"bert.encoder.layer.{i}.output.dropout.p": "element" for i in (0, 1)},
    "dropout.p": "element",
}


def vit():
    config = transformers.ViTConfig(
        image_size=32, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2, **SMALL
    )
    net = transformers.ViTForImageClassification(config)
    return net, lambda: net(pixel_values=image(32)).logits


VIT = {
    "vit.embeddings.dropout.p": "element",
    **{f"vit.layers.{i}.attention.attention_dropout": "attention" for i in (0, 1)},
    **{f"vit.layers.{i}.dropout.p": "element" for i in (0, 1)},
}


def llama():
    net = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=50, attention_dropout=0.1, **SMALL)
    )
    return net, lambda: net(input_ids=IDS).logits


LLAMA = {f"model.layers.{i}.self_attn.attention_dropout": "attention" for i in (0, 1)}


def opt():
    config = transformers.OPTConfig(
        hidden_size=16,
        word_embed_proj_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        vocab_size=50,
        max_position_embeddings=32,
        dropout=0.1,
        attention_dropout=0.1,
        layerdrop=0.2,
    )
    net = transformers.OPTForCausalLM(config)
    return net, lambda: net(input_ids=IDS).logits


OPT = {
    "model.decoder.layerdrop": "layer",
    **{f"model.decoder.layers.{i}.dropout": "element" for i in (0, 1)},
    **{f"model.decoder.layers.{i}.self_attn.dropout": "attention" for i in (0, 1)},
    # model.decoder.dropout is dead
}


def wav2vec2():
    config = transformers.Wav2Vec2Config(
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        mask_time_length=2,
        layerdrop=0.2,
        **SMALL,
    )
    net = transformers.Wav2Vec2Model(config)
    waves = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0))
    return net, lambda: net(input_values=waves).last_hidden_state


WAV2VEC2 = {
    "config.layerdrop": "layer",  # read from the shared configuration at each forward
    "feature_projection.dropout.p": "element",
    "encoder.dropout.p": "element",
    **{f"encoder.layers.{i}.attention.dropout": "attention" for i in (0, 1)},
    **{f"encoder.layers.{i}.dropout.p": "element" for i in (0, 1)},
    **{f"encoder.layers.{i}.feed_forward.intermediate_dropout.p": "element" for i in (0, 1)},
    **{f"encoder.layers.{i}.feed_forward.output_dropout.p": "element" for i in (0, 1)},
}

NETWORKS = {
    "vit_tiny_patch16_224": (vit_tiny, VIT_TINY),
    "convnext_atto": (convnext_atto, CONVNEXT_ATTO),
    "efficientnet_b0": (efficientnet_b0, EFFICIENTNET_B0),
    "resnet18": (resnet18, RESNET18),
    "GPT-2": (gpt2, GPT2),
    "BERT": (bert, BERT),
    "ViT": (vit, VIT),
    "Llama": (llama, LLAMA),
    "OPT": (opt, OPT),
}
EVERY = NETWORKS | {"Wav2Vec2": (wav2vec2, WAV2VEC2)}


def watched(net, call):
    watch = Watch(net.train())
    with watch.step():
        call()
    return watch


def tensors(output):
    return output.detach().flatten().clone()


@pytest.mark.parametrize("name", EVERY)
def test_the_list_equals_the_one_written_down(name):
    make, expected = EVERY[name]
    torch.manual_seed(0)
    net, call = make()
    net.train()
    assert {site.name: site.kind for site in find_sites(net, call)} == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_all_at_0_are_equal_each_at_one_half_differs_and_built_ones_differ(name):
    torch.manual_seed(0)
    net, call = NETWORKS[name][0]()
    net.train()
    sites = find_sites(net, call)
    for module in net.modules():  # statistics of a batch are no randomness, but they drift
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    for parameter in net.parameters():  # layer scales and last norms that start at 0 or 1e-6 hide a branch
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    for site in sites:
        site.set(0.0)
    assert torch.equal(tensors(call()), tensors(call()))
    for site in sites:
        site.set(0.5)
        outputs = [tensors(call()) for _ in range(8)]
        assert any(not torch.equal(outputs[0], other) for other in outputs[1:]), site.name
        site.set(0.0)
    for site in sites:
        site.set(site.built)
    outputs = [tensors(call()) for _ in range(4)]
    assert any(not torch.equal(outputs[0], other) for other in outputs[1:])


def test_dead_rates_are_left_out():
    torch.manual_seed(0)
    for make, dead in (
        (convnext_atto, {"drop_rate"}),
        (opt, {"model.decoder.dropout"}),
        (gpt2, {"config.resid_pdrop", "config.attn_pdrop", "config.embd_pdrop"}),
    ):
        watch = watched(*make())
        assert dead <= {site.name for site in watch.sites if site.key not in watch.seen}


def test_spec_augment_is_reported_by_name():
    net, call = wav2vec2()
    assert watched(net, call).unsteered == ["numpy.random is drawn from"]


def test_patch_dropout_is_reported_by_name():
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, patch_drop_rate=0.5)
    x = image(32)
    [report] = watched(net, lambda: net(x)).unsteered
    assert report.startswith("patch_drop (PatchDropout): ")


ROWS = {
    "DropPath": (lambda: DropPath(0.5), "drop_prob", True),
    "DropPath, not rescaled": (lambda: DropPath(0.5, scale_by_keep=False), "drop_prob", False),
    "StochasticDepth": (lambda: StochasticDepth(0.5, "row"), "p", True),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ROWS)
def test_rows_are_dropped_as_often_as_they_should(name, rate, compiled):
    make, attribute, rescales = ROWS[name]
    torch._dynamo.reset()
    module, rates = make(), Rates(torch.device("cpu"), 1)
    rates.fill([rate])
    assert rule_for(module) is not None
    steer(module, attribute, "test", rule=rule_for(module), rates=rates.rows[0])
    setattr(module, attribute, 0.123 if compiled else rate)
    call = torch.compile(module, backend="eager", fullgraph=True) if compiled else module
    torch.manual_seed(0)
    output = call(torch.ones(5000, 3, dtype=torch.float64))
    dropped = (output == 0).all(1)
    assert torch.equal(dropped, (output == 0).any(1))
    assert binomtest(int(dropped.sum()), 5000, rate).pvalue > 1e-3
    kept = output[~dropped]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate) if rescales and rate < 1 else 1.0))


def test_the_rate_of_drop_block_is_nominal_and_monotone():
    module = DropBlock2d(0.5, block_size=3, scale_by_keep=False)
    [site] = find_sites(module)
    shares = []
    for rate in (0.0, 0.1, 0.3):
        site.set(rate)
        torch.manual_seed(0)
        shares.append(float((module(torch.ones(200, 1, 16, 16)) == 0).float().mean()))
    assert shares[0] == 0.0 and shares == sorted(shares)
    assert 0.05 < shares[1] < 0.15 and 0.2 < shares[2] < 0.4
