"""pytorch-forecasting: a temporal fusion transformer on two sines, with clipped gradients."""

import numpy as np
import pandas as pd
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import QuantileLoss


def train(callbacks=()):
    seed_everything(0, verbose=False)
    frame = pd.DataFrame(
        {
            "time": np.tile(np.arange(40), 2),
            "series": np.repeat(["a", "b"], 40),
            "value": np.sin(np.arange(80) / 4),
        }
    )
    dataset = TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=8,
        max_prediction_length=3,
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=["value"],
        static_categoricals=["series"],
    )
    training = dataset.to_dataloader(train=True, batch_size=16, num_workers=0)
    validation = dataset.to_dataloader(train=False, batch_size=16, num_workers=0)
    model = TemporalFusionTransformer.from_dataset(
        dataset,
        hidden_size=8,
        attention_head_size=2,
        hidden_continuous_size=4,
        dropout=0.1,
        learning_rate=1e-2,
        loss=QuantileLoss(),
        log_interval=0,
    )
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=CSVLogger("."),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    trainer.fit(model, training, validation)
    trainer.save_checkpoint("final.ckpt")
    return trainer, model, trainer.validate(model, validation, verbose=False)


if __name__ == "__main__":
    train()
