"""Scikit-learn's digits and a small network that knows of no penalty, for the other examples."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Digits(LightningDataModule):
    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        pixels, digits = load_digits(return_X_y=True)
        train_x, test_x, train_y, test_y = train_test_split(
            torch.tensor(pixels / 16.0, dtype=torch.float32),
            torch.tensor(digits),
            stratify=digits,
            random_state=0,
        )
        self.train, self.test = TensorDataset(train_x, train_y), TensorDataset(test_x, test_y)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 512)


class Classifier(LightningModule):
    def __init__(self, width: int = 64, lr: float = 1e-2) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, digits = batch
        return functional.cross_entropy(self.net(images), digits)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, digits = batch
        scores = self.net(images)
        self.log("validation/loss", functional.cross_entropy(scores, digits), sync_dist=True)
        accuracy = (scores.argmax(1) == digits).float().mean()
        self.log("validation/accuracy", accuracy, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
