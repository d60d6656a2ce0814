"""Every optimizer that can be made from ``(params, lr)``, in every mode: equal to a reference, or refused.

The whole of it, which also writes the table of ``docs/optimizers.md``::

    python -m tests.third_party.optimizers.zoo
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_reg import L1, L2, NonNegative, attach

#: Where each package has its optimizers.
PACKAGES = {
    "torch": "torch.optim",
    "timm": "timm.optim",
    "pytorch_optimizer": "pytorch_optimizer",
    "torch_optimizer": "torch_optimizer",
    "schedulefree": "schedulefree",
    "prodigyopt": "prodigyopt",
    "dadaptation": "dadaptation",
    "lion_pytorch": "lion_pytorch",
    "torchao": "torchao.optim",
    "heavyball": "heavyball",
    "bitsandbytes": "bitsandbytes.optim",
}
MODES = ("gradient", "loss", "decoupled", "proximal", "constraint")
STEPS = 8
SETTLED = 400
LR = 0.05
LAMBDA = 0.1

#: Steps that depend on the weights by design, so that a decay changes what follows it.
OF_THE_WEIGHTS = {
    "Adafactor": "scaled by the norm of the weights",
    "AdaFactor": "scaled by the norm of the weights",
    "Adalite": "scaled by the norm of the weights",
    "AdaSmooth": "scaled by how far the weights have moved",
    "Amos": "scaled by the norm of the weights",
    "ASGD": "its lambd is a decay of its own",
    "FOCUS": "pulled to an average of the weights",
    "Fromage": "scaled by the norm of the weights, and normalises them",
    "Lamb": "scaled by the norm of the weights",
    "LARS": "scaled by the norm of the weights",
    "Magma": "leaves out weights at random",
    "Nero": "normalises the weights",
    "Ranger": "goes back towards slower weights",
    "SpectralSphere": "normalises the weights",
}


@dataclass(frozen=True)
class Member:
    """One class, and how it is made and stepped here."""

    package: str
    name: str
    cls: type[Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    closure: bool = False
    graph: bool = False

    def __str__(self) -> str:
        return f"{self.package}.{self.name}"


def loaded(package: str) -> Any:
    """The module that has the optimizers of a package."""
    with quiet():
        module = importlib.import_module(PACKAGES[package])
    if package == "heavyball":  # it compiles each step, for longer than a cell takes
        module.utils.compile_mode = None  # type: ignore[attr-defined]
    return module


def members(package: str) -> tuple[list[Member], list[str]]:
    """The classes of a package, and the names of those that are left out."""
    module = loaded(package)
    found, left_out = [], []
    for name, cls in vars(module).items():
        if inspect.isclass(cls) and issubclass(cls, Optimizer) and cls.__module__.split(".")[0] == package:
            if name.startswith("_") or cls is Optimizer:
                continue
            member = member_of(package, name)
            if member is None:
                left_out.append(f"{package}.{name}")
            else:
                found.append(member)
    return sorted(found, key=str), left_out


def member_of(package: str, name: str) -> Member | None:
    """A class that can be made from ``(params, lr)`` and stepped, or None."""
    cls = getattr(loaded(package), name, None)
    if cls is None:
        return None
    options = dict(OPTIONS.get(f"{package}.{name}", {}))
    if "weight_decay" in inspect.signature(cls).parameters:
        options["weight_decay"] = 0.0
    for dtype, closure, graph in WAYS:
        member = Member(package, name, cls, options, dtype, closure, graph)
        with contextlib.suppress(Exception):
            if bool(trained(member, steps=2).isfinite().all()):
                return member
    return None


#: What else a class needs, and what leaves out a decay of its own.
OPTIONS: dict[str, dict[str, Any]] = {
    "torch.ASGD": {"lambd": 0.0},
    **{f"bitsandbytes.{name}": {"momentum": 0.9} for name in ("SGD", "SGD8bit", "SGD32bit")},
    **{
        f"bitsandbytes.{name}": {"momentum": 0.9} for name in ("LARS", "LARS8bit", "LARS32bit", "PytorchLARS")
    },
}

#: Data types, whether the step takes a closure, whether it takes second derivatives: the first that works.
WAYS = [
    (torch.float64, False, False),
    (torch.float32, False, False),
    (torch.float64, True, False),
    (torch.float64, False, True),
]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def made(member: Member, lr: float = LR, **options: Any) -> tuple[nn.Module, Optimizer]:
    generator = torch.Generator().manual_seed(1)
    model = nn.Linear(4, 6, bias=False, dtype=member.dtype)
    with torch.no_grad():
        model.weight.copy_(torch.randn(6, 4, generator=generator, dtype=torch.float64) * 0.5 + 1.0)
    torch.manual_seed(0)
    with quiet():
        optimizer = member.cls(model.parameters(), lr=lr, **{**member.options, **options})
        if hasattr(optimizer, "train"):
            optimizer.train()
    return model, optimizer


INPUTS = torch.randn(32, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
TARGETS = torch.randn(32, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def trained(
    member: Member,
    steps: int = STEPS,
    extra: Callable[[Tensor], Tensor] | None = None,
    before: Callable[[Tensor, Optimizer], None] | None = None,
    after: Callable[[Tensor], None] | None = None,
    attached: Callable[[nn.Module, Optimizer], Any] | None = None,
    **options: Any,
) -> Tensor:
    """Least squares with something added to the loss, done before a step or after it, or attached."""
    model, optimizer = made(member, **options)
    weight: Any = model.weight
    if attached is not None:
        attached(model, optimizer)
    x, y = INPUTS.to(member.dtype), TARGETS.to(member.dtype)

    def closure() -> Tensor:
        weight.grad = None
        loss = (model(x) - y).square().mean() / 2
        if extra is not None:
            loss = loss + extra(weight)
        with torch.enable_grad():
            loss.backward(create_graph=member.graph)
        return loss

    for step in range(steps):
        torch.manual_seed(step)
        with quiet():
            if not member.closure:
                closure()
            if before is not None:
                with torch.no_grad():
                    before(weight, optimizer)
            optimizer.step(*([closure] if member.closure else []))
            if after is not None:
                with torch.no_grad():
                    after(weight)
    return weight.detach().clone()


def distance(a: Tensor, b: Tensor, effect: Tensor) -> float:
    """How far two runs are apart, as a share of an effect."""
    size = float((effect - b).norm())
    return float((a - b).norm()) / size if size else math.inf


# --- the cells: "equal", "refused", or what is wrong --------------------------------------------------


def cell(member: Member, mode: str) -> str:
    with quiet():
        model, optimizer = made(member)
        try:
            if mode == "constraint":
                attach(model, optimizer, NonNegative())
            elif mode != "loss":
                attach(model, optimizer, L2(LAMBDA) if mode != "proximal" else L1(LAMBDA), apply=mode)  # type: ignore[arg-type]
        except (ValueError, TypeError) as refusal:
            return f"refused: {refusal}"
    return {"gradient": _gradient, "loss": _loss, "decoupled": _decoupled, "proximal": _proximal}.get(
        mode, _constraint
    )(member)


def _close(a: Tensor, b: Tensor, member: Member) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-7 if member.dtype == torch.float64 else 1e-3, atol=1e-7))


def _gradient(member: Member) -> str:
    ours = trained(member, attached=lambda model, optimizer: attach(model, optimizer, L2(LAMBDA)))
    reference = trained(member, extra=lambda weight: LAMBDA / 2 * weight.square().sum())
    if _close(ours, reference, member):
        return "equal: the term in the loss"
    # eigenvectors amplify rounding: SOAP's by a third of the effect for 1e-15 of λ; some are of float32
    plain = trained(member)
    share = distance(ours, reference, plain)
    for rounding in (1e-15, 1e-7):
        shaken = trained(member, extra=lambda w, by=rounding: LAMBDA * (1 + by) / 2 * w.square().sum())  # type: ignore[misc]
        if share <= 2 * distance(shaken, reference, plain):
            return "equal: the term in the loss, as far as its rounding lets"
    return f"unlike the term in the loss: {share:.1e} of its effect"


def _loss(member: Member) -> str:
    penalty = L2(LAMBDA)

    def extra(weight: Tensor) -> Tensor:
        return penalty.value(weight, LAMBDA)

    reference = trained(member, extra=lambda weight: LAMBDA / 2 * weight.square().sum())
    same = _close(trained(member, extra=extra), reference, member)
    return "equal: the term in the loss" if same else "unlike the term in the loss"


def _own_decays(member: Member) -> Iterator[Tensor]:
    """Its own weight decay, in the ways that it can be asked for."""
    names = inspect.signature(member.cls).parameters
    if "weight_decay" not in names:
        return
    switches = ("decouple", "weight_decouple", "decoupled_decay", "decoupled_weight_decay")
    for options in [{name: True for name in switches if name in names}, {}]:
        with contextlib.suppress(Exception):
            yield trained(member, **{"weight_decay": LAMBDA, **options})


def _decoupled(member: Member) -> str:
    def ours(model: nn.Module, optimizer: Optimizer) -> Any:
        return attach(model, optimizer, L2(LAMBDA), apply="decoupled")

    def by_hand(weight: Tensor, optimizer: Optimizer) -> None:
        weight.mul_(1 - LAMBDA * float(optimizer.param_groups[0]["lr"]))

    found, plain = trained(member, attached=ours), trained(member)
    for own in _own_decays(member):
        share = distance(found, own, plain)
        if _close(found, own, member):
            return "equal: its own weight decay"
        if share < 0.05:
            return f"equal: its own weight decay, but for the order ({share:.1%} of its effect)"
    if not member.closure and not _close(found, trained(member, before=by_hand), member):
        return "unlike its own weight decay, and unlike lr·λ"
    # a decay by lr·λ means something only where a weight that is moved stays moved, and lr is the step
    moved = trained(member, before=_kick())
    if not torch.allclose(moved - plain, torch.full_like(plain, 0.25), atol=0.1):
        reason = OF_THE_WEIGHTS.get(member.name)
        return f"equal: lr·λ by hand ({reason})" if reason else "a weight that is moved does not stay moved"
    return "equal: lr·λ by hand"


def _kick() -> Callable[[Tensor, Optimizer], None]:
    taken = []

    def kick(weight: Tensor, optimizer: Optimizer) -> None:
        taken.append(1)
        gradient = weight.grad
        if len(taken) == STEPS:  # at the last step, whose gradient is the one of the weight before
            weight.add_(0.25)
            weight.grad = gradient

    return kick


#: A lasso whose solution is known: its gram matrix, its correlations, and the minimum by coordinate descent.
GRAM = INPUTS.T @ INPUTS / 32
CORRELATION = (TARGETS.T @ INPUTS / 32)[:2] + torch.tensor([[1.0, -0.8, 0.02, 0.5], [0.03, 0.9, -0.7, -0.02]])


def lasso() -> Tensor:
    weight = torch.zeros(2, 4, dtype=torch.float64)
    for _ in range(500):
        for j in range(4):
            rest = CORRELATION[:, j] - weight @ GRAM[:, j] + weight[:, j] * GRAM[j, j]
            weight[:, j] = nn.functional.softshrink(rest, LAMBDA) / GRAM[j, j]
    return weight


#: Learning rates to try for the lasso, where not the usual ones.
RATES = {"Adadelta": (20.0,), "AdaDelta": (20.0,)}


def _proximal(member: Member) -> str:
    solution, best = lasso(), math.inf
    for lr in RATES.get(member.name, (0.05, 0.3, 0.01)):
        model = nn.Linear(4, 2, bias=False, dtype=member.dtype)
        nn.init.constant_(model.weight, 0.1)
        with quiet():
            optimizer = member.cls(model.parameters(), lr=lr, **member.options)
            attach(model, optimizer, L1(LAMBDA), apply="proximal")
            for step in range(SETTLED):
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / SETTLED))
                weight = model.weight
                weight.grad = (weight.detach().double() @ GRAM - CORRELATION).to(member.dtype)
                optimizer.step()
        found = model.weight.detach().double()
        off = float((found - solution).abs().max())
        if torch.equal(found != 0, solution != 0) and off < 1e-4:
            return "equal: the certified lasso"
        best = min(best, off)
    return f"unlike the certified lasso: {best:.1e} off"


def _constraint(member: Member) -> str:
    def plain(model: Any, optimizer: Any) -> Any:
        return attach(model, optimizer, NonNegative(), dual_averaging=False)

    ours = trained(member, attached=plain)
    reference = trained(member, after=lambda weight: weight.clamp_(min=0.0))  # type: ignore[arg-type,return-value]
    return "equal: clamped by hand" if _close(ours, reference, member) else "unlike clamped by hand"


# --- the page ----------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "optimizers.md"
MARK = "<!-- the table below is written by tests/third_party/optimizers/zoo.py -->\n"


def mark(result: str) -> str:
    return {"equal": "✓", "refused": "–"}.get(result.split(":")[0], f"**{result}**")


def main(packages: list[str]) -> int:
    rows, left_out, wrong, slowest = [], [], 0, 0.0
    for package in packages or PACKAGES:
        found, others = members(package)
        left_out += others
        for member in found:
            results = []
            for mode in MODES:
                start = time.perf_counter()
                try:
                    results.append(cell(member, mode))
                except Exception as error:
                    results.append(f"{type(error).__name__}: {str(error)[:80]}")
                slowest = max(slowest, time.perf_counter() - start)
            wrong += sum(not result.startswith(("equal", "refused")) for result in results)
            rows.append((str(member), results))
            print(member, *(mark(result) for result in results), sep="\t", flush=True)
            for result in results:
                if not result.startswith(("equal", "refused")):
                    print("   ", result, file=sys.stderr, flush=True)
    print(f"{len(rows)} optimizers, {wrong} cells wrong, slowest cell {slowest:.2f} s")
    if not packages:
        head = PAGE.read_text().partition(MARK)[0]
        table = ["| Optimizer | " + " | ".join(MODES) + " | decoupled is |", "|---" * (len(MODES) + 2) + "|"]
        for name, results in rows:
            decoupled = results[2].partition(": ")[2] if results[2].startswith("equal") else ""
            table.append(f"| `{name}` | " + " | ".join(map(mark, results)) + f" | {decoupled} |")
        table += ["", "Not tried, since they are not made from `(params, lr)` or need another machine:", ""]
        table += [", ".join(f"`{name}`" for name in left_out) + "."]
        PAGE.write_text(head + MARK + "\n" + "\n".join(table) + "\n")
    return bool(wrong)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
