"""How much faster a network is once its dead filters are cut out: ``python benchmarks/compact.py``.

Trains a small residual network on scikit-learn's digits with coupled filter group lasso, cuts it, and
times both on batches of 256, interleaved, the least of all times.
"""

import time

import torch

from lightning_reg import compact
from tests.look.test_compaction import parameters, train_resnet


def main() -> None:
    torch.set_num_threads(1)
    model, x, accuracy = train_resnet(width=64, steps=150)
    smaller = compact(model, x[:2]).eval()
    networks = {"trained": model.eval(), "compact": smaller}
    best = dict.fromkeys(networks, float("inf"))
    with torch.no_grad():
        for _ in range(40):
            for name, network in networks.items():
                start = time.perf_counter()
                network(x[:256])
                best[name] = min(best[name], time.perf_counter() - start)
    print(f"torch {torch.__version__}, one thread, accuracy before cutting {accuracy:.1%}")
    print("| | parameters | ms |\n|---|---:|---:|")
    for name, network in networks.items():
        print(f"| {name} | {parameters(network):,} | {best[name] * 1e3:.1f} |")
    print(f"\n{best['trained'] / best['compact']:.2f} times as fast")


if __name__ == "__main__":
    main()
