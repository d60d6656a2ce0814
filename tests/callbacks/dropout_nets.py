"""Small LightningModules for the tests of the dropout callbacks."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    """Drops in every way; records the rates that each training step saw."""

    def __init__(self, body=None, fail_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = body if body is not None else default_body()
        self.fail_at = fail_at
        self.masks = []

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, batch_idx):
        if self.fail_at is not None and self.global_step == self.fail_at:
            raise ArithmeticError("on purpose")
        loss = self(batch[0]).pow(2).mean()
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.linspace(-1, 1, 64).view(16, 4)), batch_size=4)


class Validated(Net):
    """Validates on its training data; the logged loss is ``gap`` higher."""

    gap = 1.0

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch[0]).pow(2).mean() + self.gap)

    val_dataloader = Net.train_dataloader


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.drop = nn.Dropout(0.1)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)
        self.last = nn.Linear(8, 1)

    def forward(self, x):
        x = self.drop(self.first(x))[None]
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.last(self.lstm(x)[0])


def default_body():
    return Body()


def rates(net):
    return {
        "drop": net.body.drop.p,
        "attention": net.body.attention.dropout,
        "lstm": net.body.lstm.dropout,
    }


def trainer(*callbacks, **kwargs):
    settings = dict(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return Trainer(callbacks=list(callbacks), **(settings | kwargs))
