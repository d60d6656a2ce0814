"""Lightning's example of an autoencoder, retold: a LightningCLI that fits, tests and predicts."""

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset


class Sampler(Callback):
    """Runs the module in evaluation mode in the middle of training."""

    def on_train_epoch_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.eval()
            pl_module(trainer.datamodule.images[:3])
            pl_module.train()


class AutoEncoder(LightningModule):
    def __init__(self, hidden_dim: int = 16, learning_rate: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(36, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 3))
        self.decoder = nn.Sequential(nn.Linear(3, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 36))

    def forward(self, images):
        return self.decoder(self.encoder(images))

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val")

    def test_step(self, batch, batch_idx):
        self._step(batch, "test")

    def predict_step(self, batch, batch_idx, dataloader_idx=None):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)

    def _step(self, batch, stage):
        loss = mse_loss(self(batch[0]), batch[0])
        self.log(f"{stage}_loss", loss, on_step=True)
        return loss


class Images(LightningDataModule):
    def __init__(self, batch_size: int = 16):
        super().__init__()
        self.images = torch.rand(64, 36, generator=torch.Generator().manual_seed(0))
        self.batch_size = batch_size

    def _loader(self):
        return DataLoader(TensorDataset(self.images), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


def train(callbacks=()):
    cli = LightningCLI(
        AutoEncoder,
        Images,
        seed_everything_default=1234,
        run=False,
        trainer_defaults={
            "callbacks": [Sampler(), *callbacks],
            "max_epochs": 4,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}},
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        save_config_kwargs={"overwrite": True},
        args=[],
    )
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    cli.trainer.save_checkpoint("final.ckpt")
    tested = cli.trainer.test(ckpt_path="best", datamodule=cli.datamodule, verbose=False)
    predicted = cli.trainer.predict(ckpt_path="best", datamodule=cli.datamodule)
    return cli.trainer, cli.model, (tested, predicted)


if __name__ == "__main__":
    train()
