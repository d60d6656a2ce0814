"""What a dropout schedule costs: a transformer block, compiled by inductor and in eager.

Run ``python benchmarks/dropout.py``. Three ways to train one block, forward and backward:

- constant: the block as built, its rates never touched;
- scheduled: a new rate at each step through the class swap, as DropoutScheduler does it;
- by hand: a new rate at each step by setting ``p``.

Steps are interleaved, so that all see the same machine; the least of all times is compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from lightning_reg.dropout.rules import Rates
from lightning_reg.dropout.steering import rule_for, steer


class Block(nn.Module):
    """Pre-norm self-attention and MLP, with dropout after both and inside the MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop1, self.drop2, self.drop3 = nn.Dropout(0.1), nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.drop1(
            self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))
        )
        return x + self.drop3(self.fc2(self.drop2(F.gelu(self.fc1(self.norm2(x))))))


def own_code(block: Block, name: str) -> Block:
    """Give ``block`` a forward of its own: dynamo counts graphs, and looks them up, by code object."""
    code = Block.forward.__code__
    forward = types.FunctionType(code.replace(co_name=f"forward, {name}"), Block.forward.__globals__)
    block.__class__ = type("Block", (Block,), {"forward": forward})
    return block


def step(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    start = time.perf_counter()
    call(x).sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=150)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.randn(arguments.batch, arguments.length, arguments.width, device=device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, input {tuple(x.shape)}")
    for mode in ("inductor", "eager"):
        torch._dynamo.reset()
        counters, calls, blocks = {}, {}, {}
        for name in ("constant", "scheduled", "by hand"):
            torch.manual_seed(0)
            blocks[name] = own_code(Block(arguments.width, 4).to(device), name)
            counters[name] = CompileCounterWithBackend("inductor")
            calls[name] = (
                torch.compile(blocks[name], backend=counters[name]) if mode == "inductor" else blocks[name]
            )
        rates = Rates(device, 1)
        dropouts = [m for m in blocks["scheduled"].modules() if isinstance(m, nn.Dropout)]
        for module in dropouts:
            steer(module, "p", "benchmark", rule=rule_for(module), rates=rates.rows[0])
        by_hand = [m for m in blocks["by hand"].modules() if isinstance(m, nn.Dropout)]
        times: dict[str, list[float]] = {name: [] for name in calls}
        setting: list[float] = []
        for i in range(arguments.repeats + 20):
            rate = 0.5 * (i + 1) / (arguments.repeats + 20)
            order = list(calls)
            for name in order[i % 3 :] + order[: i % 3]:
                start = time.perf_counter()
                if name == "scheduled":
                    rates.fill([rate])
                    for module in dropouts:
                        module.__dict__["p"] = rate
                elif name == "by hand":
                    for module in by_hand:
                        module.p = rate
                spent = time.perf_counter() - start
                if name == "scheduled":
                    setting.append(spent)
                elapsed = spent + step(calls[name], x)
                if i >= 20:  # compilation, and by hand the fall back to eager, are over
                    times[name].append(elapsed)
        least = {name: min(values) for name, values in times.items()}
        print(f"\n{mode}: of {arguments.repeats} interleaved steps")
        print("| | least (ms) | median (ms) | throughput against constant | graphs |")
        print("|---|---|---|---|---|")
        for name, values in times.items():
            graphs = counters[name].frame_count if mode == "inductor" else "-"
            print(
                f"| {name} | {1e3 * least[name]:.2f} | {1e3 * statistics.median(values):.2f} | "
                f"{least['constant'] / least[name]:.3f}x | {graphs} |"
            )
        print(f"setting the rates, of three sites: {1e6 * statistics.median(setting):.1f} us a step")


if __name__ == "__main__":
    main()
