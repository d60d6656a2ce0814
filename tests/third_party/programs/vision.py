"""lightly: a linear probe under ``pytorch_lightning``, on features that are computed without gradients."""

import torch
from lightly.utils.benchmarking import LinearClassifier
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(callbacks=()):
    seed_everything(0, verbose=False)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = LinearClassifier(
        backbone, batch_size_per_device=16, lr=1.0, feature_dim=8, num_classes=5, topk=(1, 3)
    )
    images = TensorDataset(torch.randn(64, 3, 8, 8), torch.randint(0, 5, (64,)))
    loader = DataLoader(images, batch_size=16)
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=CSVLogger("."),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    trainer.fit(model, loader, loader)
    trainer.save_checkpoint("final.ckpt")
    return trainer, model, trainer.validate(model, loader, verbose=False)


if __name__ == "__main__":
    train()
