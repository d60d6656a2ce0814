"""transformers: a small BERT in a plain LightningModule, with a warm-up and gradients clipped by value."""

import torch
import transformers
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
        self.net = transformers.BertForSequenceClassification(config)

    def training_step(self, batch, batch_idx):
        output = self.net(**batch)
        self.log("loss", output.loss)
        return output  # a mapping with "loss"

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(**batch).loss)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, 2, 20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(callbacks=()):
    seed_everything(0, verbose=False)
    model = Classifier()
    texts = [{"input_ids": torch.randint(0, 50, (8,)), "labels": torch.tensor(i % 2)} for i in range(32)]
    loader = DataLoader(texts, batch_size=8)
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        gradient_clip_val=0.5,
        gradient_clip_algorithm="value",
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
