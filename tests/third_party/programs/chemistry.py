"""chemprop: message passing over molecules, fitted to how many characters their SMILES have."""

from chemprop import data, featurizers, models, nn
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger


def train(callbacks=()):
    seed_everything(0, verbose=False)
    smiles = ["C" * n + tail for n in range(1, 9) for tail in ("O", "N", "C(=O)O", "c1ccccc1")]
    points = [data.MoleculeDatapoint.from_smi(one, [float(len(one))]) for one in smiles]
    featurizer = featurizers.SimpleMoleculeMolGraphFeaturizer()
    training = data.MoleculeDataset(points[:24], featurizer)
    scaler = training.normalize_targets()
    validation = data.MoleculeDataset(points[24:], featurizer)
    validation.normalize_targets(scaler)
    model = models.MPNN(
        nn.BondMessagePassing(d_h=32, depth=2, dropout=0.1),
        nn.MeanAggregation(),
        nn.RegressionFFN(
            input_dim=32,
            hidden_dim=16,
            dropout=0.1,
            output_transform=nn.UnscaleTransform.from_standard_scaler(scaler),
        ),
        batch_norm=True,
        metrics=[nn.metrics.RMSE(), nn.metrics.MAE()],
        init_lr=1e-3,
        max_lr=1e-2,
    )
    loaders = [
        data.build_dataloader(part, batch_size=8, num_workers=0, shuffle=False)
        for part in (training, validation)
    ]
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=CSVLogger("."),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks],
    )
    trainer.fit(model, *loaders)
    trainer.save_checkpoint("final.ckpt")
    return trainer, model, trainer.predict(model, loaders[1])


if __name__ == "__main__":
    train()
