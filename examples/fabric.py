"""Train on scikit-learn's digits with Fabric; the penalty takes one line.

python examples/fabric.py --strength 1e-3
fabric run --accelerator cpu --devices 2 --strategy ddp examples/fabric.py
"""

import argparse
import os

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg import L1, attach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--strength", type=float, default=5e-4)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()

    # fabric run gives accelerator, devices and strategy, and has started the processes
    launched = "LT_CLI_USED" in os.environ
    fabric = Fabric() if launched else Fabric(accelerator="cpu", devices=1)
    if not launched:
        fabric.launch()
    fabric.seed_everything(0, verbose=False)
    pixels, digits = load_digits(return_X_y=True)
    examples = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits))
    loader = fabric.setup_dataloaders(DataLoader(examples, 64 // fabric.world_size, shuffle=True))

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    attach(model, optimizer, L1(arguments.strength), apply="proximal")

    for _ in range(arguments.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            fabric.backward(loss)
            optimizer.step()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(examples.tensors[0]), examples.tensors[1])
    weights = torch.cat([weight.flatten() for weight in model.parameters() if weight.dim() > 1])
    fabric.print(f"loss {loss.item():.3f}, zeros {float((weights == 0).float().mean()):.1%}")


if __name__ == "__main__":
    main()
