"""Small networks of other libraries that drop, with random weights, and one call of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Any]
Made = tuple[nn.Module, Call]

IDS = torch.arange(40).view(4, 10)
SMALL: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def image(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(0))


def _timm(name: str, size: int = 32, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        timm = importlib.import_module("timm")
        net = timm.create_model(name, **options)
        return net, lambda: net(image(size))

    return make


def _transformers(model: str, config: str, call: dict[str, Tensor], **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        transformers = importlib.import_module("transformers")
        net = getattr(transformers, model)(getattr(transformers, config)(**options))
        return net, lambda: net(**call)

    return make


def _lora() -> Made:
    peft, transformers = importlib.import_module("peft"), importlib.import_module("transformers")
    base = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32)
    )
    net = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["c_attn"]))
    return net, lambda: net(input_ids=IDS)


def _graph(name: str, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        models = importlib.import_module("torch_geometric.nn.models")
        net = getattr(models, name)(64, 32, num_layers=3, out_channels=8, dropout=0.1, **options)
        edges = torch.randint(0, 60, (2, 300), generator=torch.Generator().manual_seed(0))
        x = torch.randn(60, 64)
        return net, lambda: net(x, edges)

    return make


def _x_transformers() -> Made:
    x = importlib.import_module("x_transformers")
    net = x.TransformerWrapper(
        num_tokens=50,
        max_seq_len=32,
        emb_dropout=0.1,
        attn_layers=x.Encoder(
            dim=16, depth=3, heads=2, attn_dim_head=8, layer_dropout=0.1, attn_dropout=0.1, ff_dropout=0.1
        ),
    )
    return net, lambda: net(IDS)


def _x_flash() -> Made:
    x = importlib.import_module("x_transformers")
    layers = x.Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, attn_dropout=0.1, attn_flash=True)
    net = x.TransformerWrapper(num_tokens=50, max_seq_len=32, attn_layers=layers)
    return net, lambda: net(IDS)


def _monai_unet() -> Made:
    nets = importlib.import_module("monai.networks.nets")
    net = nets.UNet(2, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, dropout=0.1)
    return net, lambda: net(image(channels=1))


def _monai_unetr() -> Made:
    nets = importlib.import_module("monai.networks.nets")
    net = nets.ViT(1, (32, 32), (8, 8), 16, 32, 2, 2, classification=True, spatial_dims=2, dropout_rate=0.1)
    return net, lambda: net(image(channels=1))


def _vit_pytorch() -> Made:
    vit = importlib.import_module("vit_pytorch")
    net = vit.ViT(
        image_size=32,
        patch_size=8,
        num_classes=5,
        dim=16,
        depth=2,
        heads=2,
        mlp_dim=32,
        dropout=0.1,
        emb_dropout=0.1,
    )
    return net, lambda: net(image())


def _cait() -> Made:
    cait = importlib.import_module("vit_pytorch.cait")
    net = cait.CaiT(
        image_size=32,
        patch_size=8,
        num_classes=5,
        dim=16,
        depth=3,
        cls_depth=2,
        heads=2,
        mlp_dim=32,
        dropout=0.1,
        emb_dropout=0.1,
        layer_dropout=0.1,
    )
    return net, lambda: net(image())


def _torchvision(name: str, size: int = 32, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        models = importlib.import_module("torchvision.models")
        net = getattr(models, name)(**options)
        return net, lambda: net(image(size))

    return make


def _encoder() -> Made:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return net, lambda: net(torch.randn(4, 10, 16))


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(50, 64), nn.Dropout(0.1)
        self.rnn, self.out = nn.LSTM(64, 64, 2, dropout=0.1, batch_first=True), nn.Linear(64, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.drop(self.rnn(self.drop(self.words(ids)))[0]))


def _tagger() -> Made:
    net = _Tagger()
    return net, lambda: net(IDS)


class _Experts(nn.Module):
    """Each batch goes to another expert, and the second drops by a number that only it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.expert_drop, self.calls = nn.Linear(16, 128), 0.1, 0
        self.experts = nn.ModuleList([nn.Dropout(0.1), nn.Dropout(0.1)])

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.body(x)
        if self.calls % 3 == 2:
            return nn.functional.dropout(x, self.expert_drop, self.training)
        output: Tensor = self.experts[self.calls % 2](x)
        return output


def _experts() -> Made:
    net = _Experts()
    return net, lambda: [net(torch.randn(16, 16)) for _ in range(6)]


class _Segmenter(nn.Module):
    """An encoder, a decoder with feature dropout, and a head, as segmentation libraries build them."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 32, 3, 2, 1), nn.ConvTranspose2d(32, 32, 2, 2)
        self.decoder_dropout, self.head = (
            nn.Dropout2d(0.1),
            nn.Sequential(nn.Dropout(0.1), nn.Conv2d(32, 4, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.decoder_dropout(self.up(self.down(x).relu())))
        return output


def _segmenter() -> Made:
    net = _Segmenter()
    return net, lambda: net(image())


#: (family, name): builds the network and its call.
MEMBERS: dict[tuple[str, str], Callable[[], Made]] = {
    ("timm", "ViT"): _timm(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        num_heads=2,
        depth=2,
        drop_rate=0.1,
        pos_drop_rate=0.1,
        proj_drop_rate=0.1,
        attn_drop_rate=0.1,
        drop_path_rate=0.1,
    ),
    ("timm", "ConvNeXt"): _timm(
        "convnext_atto", depths=(2, 2, 2, 2), dims=(8, 8, 16, 16), drop_rate=0.1, drop_path_rate=0.1
    ),
    ("timm", "EfficientNet"): _timm("efficientnet_lite0", drop_rate=0.1, drop_path_rate=0.1),
    ("timm", "ResNet"): _timm("resnet18", drop_rate=0.1, drop_path_rate=0.1),
    ("timm", "Swin"): _timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
        drop_rate=0.1,
        proj_drop_rate=0.1,
        attn_drop_rate=0.1,
        drop_path_rate=0.1,
    ),
    ("timm", "MobileNetV3"): _timm("mobilenetv3_small_050", drop_rate=0.1, drop_path_rate=0.1),
    ("transformers", "BERT"): _transformers(
        "BertForSequenceClassification", "BertConfig", {"input_ids": IDS}, vocab_size=50, **SMALL
    ),
    ("transformers", "GPT-2"): _transformers(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"input_ids": IDS},
        n_embd=16,
        n_layer=2,
        n_head=2,
        vocab_size=50,
        n_positions=32,
    ),
    ("transformers", "ViT"): _transformers(
        "ViTForImageClassification",
        "ViTConfig",
        {"pixel_values": image()},
        image_size=32,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        **SMALL,
    ),
    ("transformers", "Llama"): _transformers(
        "LlamaForCausalLM", "LlamaConfig", {"input_ids": IDS}, vocab_size=50, attention_dropout=0.1, **SMALL
    ),
    ("transformers", "OPT"): _transformers(
        "OPTForCausalLM",
        "OPTConfig",
        {"input_ids": IDS},
        hidden_size=16,
        word_embed_proj_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        vocab_size=50,
        max_position_embeddings=32,
        dropout=0.1,
        attention_dropout=0.1,
    ),
    ("transformers", "T5"): _transformers(
        "T5ForConditionalGeneration",
        "T5Config",
        {"input_ids": IDS, "labels": IDS},
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        vocab_size=50,
        dropout_rate=0.1,
        decoder_start_token_id=0,
        pad_token_id=0,
    ),
    ("transformers", "BART"): _transformers(
        "BartForConditionalGeneration",
        "BartConfig",
        {"input_ids": IDS, "labels": IDS},
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=50,
        max_position_embeddings=32,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
        encoder_layerdrop=0.1,
        decoder_layerdrop=0.1,
        pad_token_id=49,
    ),
    ("transformers", "DistilBERT"): _transformers(
        "DistilBertModel",
        "DistilBertConfig",
        {"input_ids": IDS},
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        vocab_size=50,
        max_position_embeddings=32,
    ),
    ("torch_geometric", "GCN"): _graph("GCN"),
    ("torch_geometric", "GAT"): _graph("GAT", heads=2),
    ("x_transformers", "encoder with dropped layers"): _x_transformers,
    ("x_transformers", "decoder with fused attention"): _x_flash,
    ("monai", "UNet"): _monai_unet,
    ("monai", "ViT"): _monai_unetr,
    ("vit_pytorch", "ViT"): _vit_pytorch,
    ("vit_pytorch", "CaiT"): _cait,
    ("peft", "LoRA on GPT-2"): _lora,
    ("torchvision", "DenseNet"): _torchvision(
        "DenseNet", growth_rate=8, block_config=(2, 2), num_init_features=8, drop_rate=0.1
    ),
    ("torchvision", "Swin"): _torchvision(
        "SwinTransformer",
        patch_size=[2, 2],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=[4, 4],
        dropout=0.1,
        attention_dropout=0.1,
        stochastic_depth_prob=0.1,
    ),
    ("torch", "transformer encoder"): _encoder,
    ("torch", "LSTM tagger"): _tagger,
    ("stand-in", "experts by batch"): _experts,
    ("stand-in", "segmentation network"): _segmenter,
}
