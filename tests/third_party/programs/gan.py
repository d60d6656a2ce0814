"""Lightning's example of a generative adversarial network, retold: manual optimization, two optimizers."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset


class GAN(LightningModule):
    def __init__(self, latent=8, side=6, lr=2e-3):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(latent, 16),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(16, 32),
            nn.BatchNorm1d(32, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(32, side * side),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Linear(side * side, 16),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(16, 1),
        )

    def forward(self, noise):
        return self.generator(noise)

    def judge(self, images, real):
        verdict = self.discriminator(images)
        return binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, float(real)))

    def training_step(self, batch):
        (images,) = batch
        of_generator, of_discriminator = self.optimizers()
        noise = torch.randn(len(images), self.hparams.latent).type_as(images)

        self.toggle_optimizer(of_generator)
        generator_loss = self.judge(self(noise), real=True)
        of_generator.zero_grad()
        self.manual_backward(generator_loss)
        of_generator.step()
        self.untoggle_optimizer(of_generator)

        self.toggle_optimizer(of_discriminator)
        fooled = self.judge(self(noise).detach(), real=False)
        discriminator_loss = (self.judge(images, real=True) + fooled) / 2
        of_discriminator.zero_grad()
        self.manual_backward(discriminator_loss)
        of_discriminator.step()
        self.untoggle_optimizer(of_discriminator)

        self.log_dict({"g_loss": generator_loss, "d_loss": discriminator_loss}, prog_bar=True)

    def configure_optimizers(self):
        adam = [
            torch.optim.Adam(part.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999))
            for part in (self.generator, self.discriminator)
        ]
        return adam, []


def train(callbacks=()):
    seed_everything(0, verbose=False)
    model = GAN()
    images = TensorDataset(torch.rand(64, 36) * 2 - 1)
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=CSVLogger("."),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    trainer.fit(model, DataLoader(images, batch_size=16, shuffle=True))
    trainer.save_checkpoint("final.ckpt")
    return trainer, model, None


if __name__ == "__main__":
    train()
