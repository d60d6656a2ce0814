"""Train on scikit-learn's digits with a penalty attached to a module that knows nothing of it.

    python examples/train.py --strength 1e-3 --apply proximal

It runs under every launcher as it is; ``fabric run`` says in LT_* variables what the Trainer should use, and
torchrun how many processes there are. See docs/launchers.md.

    torchrun --nproc-per-node=2 examples/train.py
    fabric run --accelerator cpu --devices 2 --strategy ddp examples/train.py
    lightning-reg run --devices 2 --l2 1e-4 examples/train.py
"""

import argparse
import os

import torch
from digits import Classifier, Digits
from lightning.pytorch import Trainer, seed_everything

from lightning_reg.callbacks import L1PenaltyCallback


def main() -> None:
    devices = os.environ.get("LT_DEVICES") or os.environ.get("LOCAL_WORLD_SIZE", "1")
    nodes = os.environ.get("LT_NUM_NODES") or os.environ.get("GROUP_WORLD_SIZE", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--strength", type=float, default=5e-4)
    parser.add_argument("--apply", default="proximal", help="gradient, loss, decoupled or proximal")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--accelerator", default=os.environ.get("LT_ACCELERATOR", "cpu"))
    parser.add_argument("--devices", default=devices)
    parser.add_argument("--num-nodes", type=int, default=int(nodes))
    parser.add_argument("--strategy", default=os.environ.get("LT_STRATEGY", "auto"))
    parser.add_argument("--precision", default=os.environ.get("LT_PRECISION", "32-true"))
    arguments = parser.parse_args()

    seed_everything(0)
    module = Classifier()
    trainer = Trainer(
        max_epochs=arguments.epochs,
        accelerator=arguments.accelerator,
        devices=int(arguments.devices) if arguments.devices.isdigit() else arguments.devices,
        num_nodes=arguments.num_nodes,
        strategy=arguments.strategy,
        precision=arguments.precision,
        logger=False,
        enable_checkpointing=False,
        callbacks=[L1PenaltyCallback(arguments.strength, apply=arguments.apply)],
    )
    trainer.fit(module, Digits())
    if trainer.is_global_zero:
        weights = torch.cat([weight.flatten() for weight in module.parameters() if weight.dim() > 1])
        zeros = float((weights == 0).float().mean())
        print(f"validation accuracy {trainer.callback_metrics['validation/accuracy']:.1%}, zeros {zeros:.1%}")


if __name__ == "__main__":
    main()
