"""What the group lasso's proximal step costs, against a loop over groups and against other packages.

    python benchmarks/group_lasso.py [--repeats 15] [--threads 1]

Contenders run interleaved on the same weights, and the fastest of many repeats counts.
"""

import argparse
import time

import torch
from torch import nn

from lightning_reg.layout import Slices
from lightning_reg.prox_group import shrink_groups_in_metric_
from lightning_reg.step_size import StepSize

NEWTON_STEPS = 7


def resnet50_filters():
    """The 53 convolutions of ResNet-50."""
    shapes = [(64, 3, 7, 7)]
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, before, 1, 1))
            before = 4 * width
    return shapes


def ours(weights, steps, threshold):
    for weight, step in zip(weights, steps, strict=True):
        shrink_groups_in_metric_([weight], [Slices(tuple(weight.shape), (0,))], [step], threshold)


def loop(weights, steps, threshold):
    """The plain loop: one group at a time."""
    for weight, step in zip(weights, steps, strict=True):
        for group in weight:
            norm = group.norm()
            group.mul_(torch.clamp(1 - threshold * step.numerator / norm, min=0))


def loop_in_metric(weights, steps, threshold):
    """The same root finder, from the same bounds, one group at a time."""
    for weight, step in zip(weights, steps, strict=True):
        for group, moment in zip(weight, step.second_moment, strict=True):
            tau = step.numerator / (moment.sqrt() + step.eps) * threshold
            reach = (group / tau).norm()
            if reach <= 1:
                group.zero_()
                continue
            theta = torch.maximum((group.abs() - tau).max(), (reach - 1) * tau.min())
            for _ in range(NEWTON_STEPS):
                q = 1 / (theta + tau)
                squares = (group * q).square()
                phi = squares.sum()
                theta = theta + phi * (phi.sqrt() - 1) / (squares * q).sum()
            group.mul_(theta / (theta + tau))


def fastest(contenders, make, repeats):
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, run in contenders.items():
            arguments = make()
            start = time.perf_counter()
            run(*arguments)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def compare(title, shapes, repeats):
    torch.manual_seed(0)
    start = [torch.randn(shape) * 0.05 for shape in shapes]
    moments = [torch.rand(shape).mul_(1e-3).square_() for shape in shapes]
    plain = [StepSize(0.1) for _ in start]
    adaptive = [StepSize(1e-3, moment, eps=1e-8) for moment in moments]
    count = sum(shape[0] for shape in shapes)
    print(f"\n{title}: {sum(w.numel() for w in start) / 1e6:.1f} M weights, {count} groups")
    for form, steps, slow in (
        ("Euclidean", plain, loop),
        ("metric", adaptive, loop_in_metric),
    ):
        # a group goes to zero where its pull is at most the threshold: half of them
        pulls = [(w / s.dense()).flatten(1).norm(dim=1) for w, s in zip(start, steps, strict=True)]
        threshold = float(torch.cat(pulls).median())
        contenders = {"ours": ours, "loop": slow}
        if form == "Euclidean":
            contenders |= others(start)
        best = fastest(contenders, lambda s=steps, t=threshold: ([w.clone() for w in start], s, t), repeats)
        one, two = [w.clone() for w in start], [w.clone() for w in start]
        with torch.no_grad():
            ours(one, steps, threshold)
            slow(two, steps, threshold)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        dead = sum(int((w.flatten(1) == 0).all(1).sum()) for w in one)
        print(f"  {form} ({dead / count:.0%} of the groups go to zero)")
        for name, seconds in best.items():
            print(f"    {name:32s} {1e3 * seconds:9.2f} ms   {seconds / best['ours']:6.2f} x ours")


def others(start):
    """What other packages offer, where they are installed."""
    found = {}
    try:
        from proxtorch.operators import GroupLasso
    except ImportError:
        pass
    else:

        def proxtorch(weights, steps, threshold):
            for weight, step in zip(weights, steps, strict=True):
                sizes = [weight[0].numel()] * len(weight)
                operator = GroupLasso(threshold, sizes)
                weight.copy_(operator.prox(weight.view(-1), step.numerator).view(weight.shape))

        found["proxtorch's GroupLasso"] = proxtorch
    try:
        import torch_pruning
    except ImportError:
        return found
    layers = nn.ModuleList()
    for weight in start:
        if weight.dim() == 4:
            layers.append(nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False))
        else:
            layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=False))

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, inputs):
            return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]

    model = Parallel()
    example = [
        torch.randn(1, w.shape[1], *w.shape[2:]) if w.dim() == 4 else torch.randn(1, w.shape[1])
        for w in start
    ]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    with torch.enable_grad():
        pruner = torch_pruning.pruner.GroupNormPruner(model, [example], importance, pruning_ratio=0.5)
        pruner.update_regularizer()

    def torch_pruning_step(weights, steps, threshold):
        for layer in model.layers:
            layer.weight.grad = torch.zeros_like(layer.weight)
        pruner.regularize(model)

    found["torch-pruning's regularize"] = torch_pruning_step
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, float32, {arguments.threads} thread(s), CPU")
    with torch.no_grad():
        compare("ResNet-50 filters", resnet50_filters(), max(3, arguments.repeats // 3))
        compare("a 1000 x 1000 layer", [(1000, 1000)], arguments.repeats)
