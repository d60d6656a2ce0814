"""scvi-tools: SCVI, which builds its own Trainer, on Poisson counts in two batches."""

import anndata
import numpy as np
import scvi


def train(callbacks=()):
    scvi.settings.seed = 0
    generator = np.random.default_rng(0)
    cells = anndata.AnnData(generator.poisson(2.0, (64, 30)).astype(np.float32))
    cells.obs["batch"] = np.repeat(["a", "b"], 32)
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=4)
    model.train(
        max_epochs=4,
        batch_size=16,
        accelerator="cpu",
        train_size=0.75,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        log_every_n_steps=1,
        plan_kwargs={"lr": 1e-2},
        callbacks=[*callbacks],
    )
    model.trainer.save_checkpoint("final.ckpt")
    return model.trainer, model.trainer.lightning_module, model.get_latent_representation()


if __name__ == "__main__":
    train()
