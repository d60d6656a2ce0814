"""Every penalty, constraint and metric on sharded tensors beside the same on plain ones; rank 0 saves.

Four processes share out the tensors of one module in several ways; of the small ones some processes hold
nothing. All is float64, and each result is how far the sharded one is from the plain one, relatively.
"""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_reg import (
    L1,
    L2SP,
    NM,
    Coupled,
    GroupLasso,
    Hoyer,
    HoyerSquare,
    KeepLargest,
    L2Norm,
    LInf,
    NuclearNorm,
    Orthogonality,
    OverlappingGroupLasso,
    Penalty,
    SparseGroupLasso,
    SpectralNorm,
    TargetSparsity,
    TotalVariation,
    attach,
)
from lightning_reg.apply import Term
from lightning_reg.groups.forms import layout_of
from lightning_reg.groups.spanning import local_layout
from lightning_reg.look.layers import layer_states
from lightning_reg.metrics import effective_rank, group_sparsity, parameter_norm, sparsity
from lightning_reg.penalties.bound import Bound
from lightning_reg.prox import projections as constraints
from lightning_reg.select.parameters import named_parameters, select_parameters
from lightning_reg.tensors.shards import entries, local, part
from tests.turns import part_of

RANKS = 4
#: A run of the tests has one of so many parts of what trains with a penalty, and of the rest.
PARTS, OF_THE_REST = 7, 3
WAYS = ("rows", "columns", "both", "hybrid", "whole", "mixed", "fsdp+tp")


class Zoo(nn.Module):
    """Tensors whose groups a cut respects, crosses or misses, and some with fewer rows than processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(6, 5)
        self.next = nn.Linear(5, 2)
        self.lstm = nn.LSTM(4, 3)
        self.turned = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.attention = nn.MultiheadAttention(8, 4)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn_like(parameter))
            self.linear.weight[2] = 0.0


def labels(name: str, parameter: Tensor, module: nn.Module) -> Tensor:
    """Three groups in a pattern that no cut respects, and every seventh weight in none."""
    index = torch.arange(parameter.numel()).reshape(parameter.shape)
    return torch.where(index % 7 == 0, -1, index % 3)


def steps(name: str, parameter: Tensor, module: nn.Module) -> Tensor:
    """A factor for each step along the last dimension."""
    *rest, length = parameter.shape
    return torch.linspace(0.0, 2.0, length - 1, dtype=torch.float64).expand(*rest, length - 1)


UNIT = Coupled([{"linear.weight": "rows", "linear.bias": "rows", "next.weight": "columns"}])
PENALTIES: dict[str, Penalty] = {
    "l1": L1(0.1, "all"),
    "l2_norm": L2Norm(0.3),
    "l2_sp": L2SP(0.2, new="next.*"),
    "hoyer": Hoyer(0.1),
    "hoyer_square": HoyerSquare(0.1),
    "nuclear": NuclearNorm(0.3),
    "spectral": SpectralNorm(0.3),
    "soft_orthogonality": Orthogonality(0.01),
    "srip": Orthogonality(0.01, form="srip"),
    **{f"group_{form}": GroupLasso(0.1, groups=form) for form in ("rows", "columns", "tensor")},  # type: ignore[arg-type]
    "group_channels": GroupLasso(0.1, "turned.weight", groups="channels"),
    "group_filters": GroupLasso(0.1, "turned.weight", groups="filters"),
    "group_heads": GroupLasso(0.1, "attention.*weight", groups="heads"),
    "group_labels": GroupLasso(0.1, groups=labels),
    "group_coupled": GroupLasso(0.1, groups=UNIT),
    "sparse_group_rows": SparseGroupLasso(0.1),
    "sparse_group_columns": SparseGroupLasso(0.1, groups="columns"),
    "l_inf_rows": LInf(0.3, groups="rows"),
    "l_inf_tensor": LInf(0.3),
    "l_inf_coupled": LInf(0.3, groups=UNIT),
    "factors_of_tensors": NuclearNorm(0.3, factors=lambda name, parameter, module: 0.5),
    "factors_of_steps": TotalVariation(0.1, factors=steps),
    "factors_of_levels": OverlappingGroupLasso(
        0.05, "linear.weight", factors=(0.5, torch.linspace(0.0, 2.0, 6))
    ),
}
#: What the ways of sharding beyond the two simple ones are tried on.
FEW = ("l1", "group_rows", "group_columns", "group_labels", "group_coupled", "l_inf_rows", "nuclear")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
}


def shard(model: nn.Module, mesh: Any, placements: Callable[[Tensor], list[Any]]) -> nn.Module:
    """Return a copy of ``model`` whose parameters are sharded."""
    model = copy.deepcopy(model)
    for s in named_parameters(model):
        placed = place(s.parameter.detach(), mesh, placements(s.parameter))
        setattr(s.module, s.attribute, nn.Parameter(placed))
    return model


def place(tensor: Tensor, mesh: Any, placements: list[Any]) -> Tensor:
    """``distribute_tensor`` of what every process has, with nothing to send."""
    full = DTensor.from_local(tensor.clone(), mesh, [Replicate()] * mesh.ndim)
    return full.redistribute(placements=placements)


def fsdp_and_tensor_parallel(model: nn.Module) -> nn.Module:
    """Column- and row-wise layers, sharded once more over the other half of the mesh."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = copy.deepcopy(model)
    parallelize_module(model, mesh["tp"], {"linear": ColwiseParallel(), "next": RowwiseParallel()})
    for layer in (model.linear, model.next, model.lstm, model.attention):
        fully_shard(layer, mesh=mesh["dp"])
    return fully_shard(model, mesh=mesh["dp"])


class Even(Zoo):
    """Layers that two ways of sharding divide: FSDP2 with tensor parallelism wants them so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.linear = nn.Linear(6, 8).double()
        self.next = nn.Linear(8, 4).double()


def ways(plain: nn.Module) -> dict[str, Callable[[], tuple[nn.Module, nn.Module]]]:
    row = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2))
    last = lambda p: Shard(p.dim() - 1)  # noqa: E731
    even = Even()
    return {
        "rows": lambda: (plain, shard(plain, row, lambda p: [Shard(0)])),
        "columns": lambda: (plain, shard(plain, row, lambda p: [last(p)])),
        "both": lambda: (plain, shard(plain, square, lambda p: [Shard(0), last(p)])),
        "hybrid": lambda: (plain, shard(plain, square, lambda p: [Replicate(), Shard(0)])),
        "whole": lambda: (plain, shard(plain, row, lambda p: [Replicate()])),
        "mixed": lambda: (plain, shard(plain, row, lambda p: [Shard(0) if p.dim() == 1 else last(p)])),
        "fsdp+tp": lambda: (even, fsdp_and_tensor_parallel(even)),
    }


def apart(sharded: Any, plain: Any) -> float:
    """How far two tensors, or two modules' parameters, are from one another."""
    if isinstance(plain, nn.Module):
        pairs = list(zip(sharded.parameters(), plain.parameters(), strict=True))
        return max(apart(a.detach(), b.detach()) for a, b in pairs)
    if sharded.shape != plain.shape:
        return float("inf")
    # each process looks at its own part, and the results of all are put together at the end
    difference = local(sharded) - part(plain, sharded)
    return float(difference.norm() / plain.norm().clamp(min=1e-3))


def give_gradients(model: nn.Module, plain: nn.Module) -> None:
    """The same random gradients for both, laid out as each one's parameters."""
    torch.manual_seed(5)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        b.grad = torch.randn_like(b)
        mine = part(b.grad, a).clone()
        a.grad = DTensor.from_local(mine, a.device_mesh, a.placements, shape=a.shape, stride=a.stride())  # type: ignore[attr-defined]


def train(pair: tuple[nn.Module, nn.Module], penalty: Penalty, apply: Any, optimizer: str) -> float:
    """A step or two of an optimizer with a penalty attached."""
    plain, model = (copy.deepcopy(pair[0]), pair[1])
    handles = []
    for one in (plain, model):
        selected = select_parameters(one, penalty.select)
        stepping = OPTIMIZERS[optimizer]([s.parameter for s in selected])
        handles.append((stepping, attach(one, stepping, penalty, apply)))
    for _ in range(2 if optimizer == "adam" else 1):
        give_gradients(model, plain)
        for stepping, _ in handles:
            stepping.step()
    states = [handle.state_dict().get("penalty", {}) for _, handle in handles]
    difference = apart(model, plain)
    for name, state in states[0].items():
        difference = max(difference, apart(states[1][name], state))
    handles[1][1].load_state_dict(handles[0][1].state_dict())
    return difference


def value_and_gradient(pair: tuple[nn.Module, nn.Module], penalty: Penalty) -> float:
    """The term of the loss and its backward; then the sizes that TargetSparsity steers by."""
    plain, model = copy.deepcopy(pair[0]), pair[1]
    values, terms = [], []
    for one in (plain, model):
        one.zero_grad()
        term = Term(penalty, one)
        value = term.value(0.7)
        value.backward()
        values.append(value.detach())
        terms.append(term)
    difference = apart(values[1], values[0])
    for s, t in zip(terms[0].selected, terms[1].selected, strict=True):
        assert t.parameter.grad is not None and s.parameter.grad is not None
        difference = max(difference, apart(t.parameter.grad, s.parameter.grad))
    for measure in (lambda t: t.bound.sizes, lambda t: lambda w: Bound.sizes(t.bound, w)):
        sizes = [measure(t)([s.parameter for s in t.selected]).sort().values for t in terms]
        difference = max(difference, apart(sizes[1], sizes[0]))
    return difference


def constrain(pair: tuple[nn.Module, nn.Module], groups: str) -> float:
    plain, model = copy.deepcopy(pair[0]), pair[1]
    for one in (plain, model):
        for s in select_parameters(one, "weights"):
            layout = local_layout(s.parameter, layout_of(s, groups))
            constraints.max_norm_(s.parameter, layout, 1.5)
            constraints.box_(s.parameter, -0.4, 0.6)
            budget, multiplier = torch.tensor(0.3).double(), torch.tensor(0.1).double()
            constraints.spend_budget_(s.parameter, multiplier, budget, 0.05)
    before = apart(model, plain)
    for one in (plain, model):
        for s in select_parameters(one, "weights"):
            constraints.unit_norm_(s.parameter, local_layout(s.parameter, layout_of(s, groups)))
    return max(before, apart(model, plain))


def steer(pair: tuple[nn.Module, nn.Module], groups: Any) -> float:
    """A strength that would take every group: as many go, and the same stay, as of whole tensors."""
    plain, model = (copy.deepcopy(pair[0]), pair[1])
    penalty = GroupLasso(TargetSparsity(0.5, initial=10.0, floor=1), groups=groups)
    handles = []
    for one in (plain, model):
        selected = select_parameters(one, penalty.select)
        optimizer = torch.optim.SGD([s.parameter for s in selected], lr=0.1, momentum=0.5)
        handles.append((optimizer, attach(one, optimizer, penalty, "proximal", total_steps=200)))
    for _ in range(3):
        give_gradients(model, plain)
        for optimizer, _ in handles:
            optimizer.step()
    dead = [handle.state_dict()["penalty"]["dead groups"] for _, handle in handles]
    assert dead[0].sum() > 0
    return max(apart(model, plain), float((dead[0] != dead[1]).sum()))


def prune(pair: tuple[nn.Module, nn.Module]) -> float:
    """Masks that compare weights of the whole tensor, or of all of them; ties too."""
    found, (plain, model) = 0.0, (copy.deepcopy(pair[0]), pair[1])
    start = [[p.detach().clone() for p in one.parameters()] for one in (plain, model)]
    for constraint in (
        KeepLargest(0.5),
        KeepLargest(0.4, scope="all"),
        KeepLargest(0.5, of="groups", groups=labels),
        KeepLargest(0.4, of="groups", groups="columns", scope="all"),
        NM(1, 2, ["linear.weight", "lstm.weight_ih*", "turned.weight", "attention.*weight"]),
    ):
        for one, begin in zip((plain, model), start, strict=True):
            term = Term(constraint, one)
            parameters = [s.parameter for s in term.selected]
            with torch.no_grad():
                for parameter, value in zip(one.parameters(), begin, strict=True):
                    parameter.copy_(value).mul_(2.0).round_()
            term.bound.prox_(parameters, getattr(constraint, "share", 1.0), ())
        found = max(found, apart(model, plain))
    return found


def measure(pair: tuple[nn.Module, nn.Module]) -> float:
    plain, model = pair
    functions: list[Callable[[nn.Module], Tensor]] = [
        sparsity,
        lambda m: group_sparsity(m, "rows"),
        lambda m: group_sparsity(m, labels),
        parameter_norm,
        lambda m: parameter_norm(m, order=float("inf")),
        lambda m: effective_rank(m.linear.weight),
        lambda m: torch.tensor([[s.entries, s.sparsity, s.norm] for s in layer_states(m)]),
    ]
    difference = max(apart(f(model).detach(), f(plain).detach()) for f in functions)
    index = torch.tensor([0, 11, 3, 29, 7, 11])
    weights = [m.linear.weight.detach() for m in (model, plain)]
    return max(difference, apart(entries(weights[0], index), entries(weights[1], index)))


def partial_gradients(pair: tuple[nn.Module, nn.Module]) -> float:
    """A gradient that is a sum over processes still to be taken gets the penalty's once."""
    plain, model = copy.deepcopy(pair[0]), pair[1]
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        b.grad = torch.ones_like(b)
        share = torch.full_like(b, 1.0 / RANKS)
        a.grad = DTensor.from_local(share, a.device_mesh, [Partial()])  # type: ignore[attr-defined]
    for one in (plain, model):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        handle = attach(one, optimizer, L1(0.1, "all"))
        optimizer.step()
        handle.remove()
    return apart(model, plain)


def partial_gradients_in_backward(pair: tuple[nn.Module, nn.Module], penalty: Penalty) -> float:
    """The same, where the backward pass of a batch that is shared out makes the sums; two make a step."""
    plain, model = copy.deepcopy(pair[0]), pair[1]
    torch.manual_seed(7)
    full = torch.randn(2, 3 * RANKS, 6).double()
    mesh = model.linear.weight.device_mesh
    for one, batches in ((plain, list(full)), (model, [place(x, mesh, [Shard(0)]) for x in full])):
        optimizer = torch.optim.SGD([*one.linear.parameters(), *one.next.parameters()], lr=0.1)
        handle = attach(one, optimizer, penalty)
        one.next(one.linear(batches[0])).square().mean().backward()
        assert one is plain or any(p.is_partial() for p in one.linear.weight.grad.placements)
        optimizer.zero_grad()
        handle.add_gradient_in_backward()
        for x in batches:
            one.next(one.linear(x)).square().mean().backward()
        optimizer.step()
        handle.remove()
    return apart(model, plain)


def fsdp1(_: Any, apply: Any) -> float:
    """Torch's first FSDP, whose parameters are vectors: penalties of single weights, in a loop by hand."""
    torch.manual_seed(6)
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    cpu = torch.device("cpu")
    model = FullyShardedDataParallel(copy.deepcopy(plain), use_orig_params=True, device_id=cpu)
    inputs = torch.randn(RANKS, 3, 6).double()
    for one, batch in ((plain, inputs.flatten(0, 1)), (model, inputs[dist.get_rank()])):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.05)
        attach(one, optimizer, L1(0.1, "*.weight"), apply)
        for _ in range(3):
            optimizer.zero_grad()
            one(batch).square().mean().backward()
            optimizer.step()
    with FullyShardedDataParallel.summon_full_params(model):
        return apart(model, plain)


def fsdp1_refusals(_: Any) -> float:
    """What FSDP1's vectors cannot tell is refused; the number of sentences that did not come."""
    model: Any = FullyShardedDataParallel(
        nn.Linear(6, 5), use_orig_params=True, device_id=torch.device("cpu")
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tries: list[tuple[str, Callable[[], Any]]] = [
        ("and GroupLasso.*needs them whole", lambda: attach(model, optimizer, GroupLasso(0.1, "*weight"))),
        ("select='weights' goes by dimensions", lambda: attach(model, optimizer, L1(0.1))),
        ("a term of the loss needs them whole", lambda: L1(0.1, "*weight")(model)),
    ]
    missing = 0
    for sentence, attempt in tries:
        try:
            attempt()
            missing += 1
        except ValueError as error:
            missing += not re.search(sentence, str(error))
    return float(missing)


def stays_local(pair: tuple[nn.Module, nn.Module], apply: Any) -> float:
    """Groups that lie whole on a process need no collective: how many there were."""
    plain, model = copy.deepcopy(pair[0]), pair[1]
    optimizer = torch.optim.Adam(model.linear.parameters(), lr=0.1)
    attach(model, optimizer, GroupLasso(0.1, "linear.weight"), apply)
    give_gradients(model, plain)
    with CommDebugMode() as communication:
        optimizer.step()
    return float(communication.get_total_counts())


def checks(turn: int | None) -> Iterator[tuple[Any, ...]]:
    """The name of each check, its way of sharding, the function that makes it, and what that takes.

    Of those that train with a penalty a seventh, and of the rest a third; or all of them.
    """
    yield from part_of(list(of_penalties()), PARTS, turn)
    yield from part_of(list(of_the_rest()), OF_THE_REST, turn)


def of_the_rest() -> Iterator[tuple[Any, ...]]:
    for way in WAYS:
        for groups in ("rows", "columns", "tensor"):
            yield f"{way}-constraints-{groups}", way, constrain, groups
        for name, some in (("rows", "rows"), ("columns", "columns"), ("coupled", UNIT)):
            yield f"{way}-steered-{name}", way, steer, some
        yield f"{way}-pruned", way, prune
        yield f"{way}-metrics", way, measure
    yield "whole-partial_gradients", "whole", partial_gradients
    for name in ("l1", "l2_norm", "group_coupled"):
        yield f"whole-partial_in_backward-{name}", "whole", partial_gradients_in_backward, PENALTIES[name]
    for apply in ("gradient", "decoupled", "proximal"):
        yield f"fsdp1-{apply}", "rows", fsdp1, apply
    yield "fsdp1-refusals", "rows", fsdp1_refusals
    yield "rows-gradient-stays_local", "rows", stays_local, "gradient"
    yield "rows-proximal-stays_local", "rows", stays_local, "proximal"


def of_penalties() -> Iterator[tuple[Any, ...]]:
    for name, penalty in PENALTIES.items():  # those of a penalty in a row, so that each part has some
        for way in WAYS if name in FEW else ("rows", "columns"):
            yield f"{way}-{name}-loss", way, value_and_gradient, penalty
            yield f"{way}-{name}-gradient", way, train, penalty, "gradient", "sgd"
            if penalty.has_prox:
                yield f"{way}-{name}-proximal-sgd", way, train, penalty, "proximal", "sgd"
            if penalty.prox_in_metric:
                yield f"{way}-{name}-proximal-adam", way, train, penalty, "proximal", "adam"


def worst(results: list[Any]) -> Any:
    """The first error of any process, or the largest difference."""
    return next((one for one in results if isinstance(one, str)), None) or max(results)


def main(turn: int | None, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results: dict[str, Any] = {}
    made = ways(Zoo())
    for name, way, difference, *arguments in checks(turn):
        try:
            results[name] = difference(made[way](), *arguments)
        except Exception:  # all ranks run the same, so that all come here
            results[name] = traceback.format_exc()
    of_all: list[Any] = [None] * RANKS
    dist.all_gather_object(of_all, results)
    if dist.get_rank() == 0:
        torch.save({name: worst([one[name] for one in of_all]) for name in results}, out)
    dist.destroy_process_group()
