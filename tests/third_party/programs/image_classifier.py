"""timm: a small vision transformer in a plain LightningModule, under AdamW in two parameter groups."""

import timm
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            depth=2,
            num_classes=4,
            drop_rate=0.1,
            attn_drop_rate=0.1,
            drop_path_rate=0.1,
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        flat = [p for p in self.parameters() if p.dim() < 2]
        deep = [p for p in self.parameters() if p.dim() >= 2]
        return torch.optim.AdamW(
            [{"params": deep, "weight_decay": 0.05}, {"params": flat, "weight_decay": 0.0}], lr=1e-3
        )


def train(callbacks=()):
    seed_everything(0, verbose=False)
    model = Classifier()
    loader = DataLoader(TensorDataset(torch.randn(32, 3, 32, 32), torch.randint(0, 4, (32,))), batch_size=8)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        accumulate_grad_batches=2,
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
