"""gluonts: DeepAR, whose estimator builds its own Trainer, on three sines."""

import numpy as np
import pandas as pd
from gluonts.dataset.pandas import PandasDataset
from gluonts.torch import DeepAREstimator
from lightning.pytorch import seed_everything


def train(callbacks=()):
    seed_everything(0, verbose=False)
    days = pd.date_range("2020-01-01", periods=80, freq="D")
    sines = {
        str(i): pd.DataFrame({"target": np.sin(np.arange(80) / (3 + i)).astype("float32")}, index=days)
        for i in range(3)
    }
    dataset = PandasDataset(sines, target="target")
    estimator = DeepAREstimator(
        freq="D",
        prediction_length=4,
        context_length=8,
        hidden_size=8,
        num_layers=2,
        dropout_rate=0.1,
        lr=1e-2,
        batch_size=8,
        num_batches_per_epoch=5,
        trainer_kwargs={
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [*callbacks],
        },
    )
    fitted = estimator.train_model(dataset)
    fitted.trainer.save_checkpoint("final.ckpt")
    return fitted.trainer, fitted.trained_net, [type(f) for f in fitted.predictor.predict(dataset)]


if __name__ == "__main__":
    train()
