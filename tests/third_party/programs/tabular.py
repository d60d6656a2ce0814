"""pytorch-tabular, which builds its own Trainer from ``pytorch_lightning``: a table of five columns."""

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig


def train(callbacks=()):
    generator = np.random.default_rng(0)
    table = pd.DataFrame(generator.normal(size=(96, 4)), columns=list("abcd"))
    table["kind"] = generator.choice(["x", "y", "z"], 96)
    table["target"] = (table.a + table.b > 0).astype(int)
    model = TabularModel(
        data_config=DataConfig(
            target=["target"],
            continuous_cols=list("abcd"),
            categorical_cols=["kind"],
            num_workers=0,
            pin_memory=False,
        ),
        model_config=CategoryEmbeddingModelConfig(
            task="classification",
            layers="16-8",
            dropout=0.1,
            embedding_dropout=0.1,
            learning_rate=1e-2,
            seed=1,
        ),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            max_epochs=4,
            batch_size=16,
            accelerator="cpu",
            progress_bar="none",
            checkpoints=None,
            early_stopping=None,
            load_best=False,
            trainer_kwargs={"enable_model_summary": False, "log_every_n_steps": 1},
            seed=1,
        ),
        verbose=False,
        suppress_lightning_logger=True,
    )
    model.fit(table[:64], validation=table[64:], seed=1, callbacks=[*callbacks])
    model.trainer.save_checkpoint("final.ckpt")
    return model.trainer, model.model, model.predict(table[64:])


if __name__ == "__main__":
    train()
