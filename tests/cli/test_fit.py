from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_reg.cli.fit import main

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = """
seed_everything: 0
trainer:
  max_epochs: 6
  log_every_n_steps: 5
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {root}
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {{save_dir: {root}}}
  callbacks:
    - class_path: lightning_reg.callbacks.RegularizationMonitor
    - class_path: lightning_reg.callbacks.ForwardPenaltyCallback
      init_args:
        penalty:
          class_path: lightning_reg.ConfidencePenalty
          init_args: {{strength: 0.01}}
model:
  class_path: lightning_reg.LogisticRegression
  init_args:
    in_features: 30
    l1_strength: 0.05
    optimizer:
      class_path: torch.optim.SGD
      init_args: {{lr: 0.1, momentum: 0.9}}
data:
  class_path: lightning_reg.data.SklearnDataModule
  init_args: {{name: breast_cancer}}
"""


def test_fit_validate_test_and_predict_from_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "fit.yaml"
    config.write_text(CONFIG.format(root=tmp_path))
    main(["fit", "--config", str(config)])
    assert "Regularization after" in capsys.readouterr().out
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    weight = torch.load(checkpoint, weights_only=True)["state_dict"]["linear.weight"]
    assert (weight == 0).any()
    metrics = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "gradient_ratio/l1" in metrics.splitlines()[0]
    for command in ("validate", "test", "predict"):
        main([command, "--config", str(config), "--ckpt_path", str(checkpoint)])
    printed = capsys.readouterr().out
    assert "val/accuracy" in printed
    assert "test/accuracy" in printed


def test_names_alone_on_the_command_line(tmp_path: Path) -> None:
    trainer = ["--trainer.max_epochs=1", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    data = ["--data=SklearnDataModule", "--data.name=diabetes"]
    main(["fit", *trainer, *quiet, *data, "--model=LinearRegression", "--model.in_features=10"])


def test_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "sparse_mlp.yaml"
    options = [
        "--trainer.max_epochs=3",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.accelerator=cpu",
    ]
    main(["fit", "--config", str(example), *options, "--trainer.enable_progress_bar=false"])
    assert "first.weight" in capsys.readouterr().out
