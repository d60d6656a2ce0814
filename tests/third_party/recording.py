"""What a program shows of a run to whoever uses it, without the numbers that training changes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytorch_lightning
import torch
from torch import Tensor, nn

PROGRAMS = Path(__file__).parent / "programs"
#: Entries of a checkpoint whose values, too, are the same with and without a penalty.
SAME = {"epoch", "global_step", "pytorch-lightning_version", "loops", "hyper_parameters", "hparams_name"}


@dataclass(frozen=True, eq=False)
class Run:
    weights: dict[str, Tensor]
    module: nn.Module
    logged: set[str]
    interface: dict[str, Any]


class _Probe(lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Notes what ``training_step`` gave back and which names were logged."""

    def __init__(self):
        super().__init__()
        self.outputs: list[Any] = []
        self.logged: set[str] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.outputs.append(structure(outputs))

    def on_fit_end(self, trainer, pl_module):
        self.logged = {*trainer.callback_metrics, *trainer.logged_metrics, *trainer.progress_bar_metrics}

    def __deepcopy__(self, memo):
        return self  # programs copy callbacks before they use them


def run(program: str, folder: Path, callbacks=()) -> Run:
    """Train in ``folder`` with the callbacks."""
    probe = _Probe()
    train = load(program).train
    folder.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        trainer, module, result = train([*callbacks, probe])
    finally:
        os.chdir(before)
    checkpoint = torch.load(folder / "final.ckpt", weights_only=False)
    interface = {
        "steps": trainer.global_step,
        "outputs": probe.outputs,
        "result": structure(result),
        "checkpoint": checkpoint_structure(checkpoint),
        "checkpoints during the fit": [
            checkpoint_structure(torch.load(path, weights_only=False))
            for path in sorted(folder.rglob("checkpoints/*.ckpt"))
        ],
        "module": {name: traces(part) for name, part in module.named_modules()},
        "optimizers": [(type(o).__name__, sorted(vars(o)), hooks(o)) for o in trainer.optimizers],
        "callbacks": [
            type(c).__name__
            for c in trainer.callbacks
            if type(c).__module__.partition(".")[0] != "lightning_reg"
        ],
        "files": sorted(
            {path.suffix.rstrip("0123456789") for path in folder.rglob("*.*")}
        ),  # events end in a number
    }
    return Run(checkpoint["state_dict"], module, probe.logged, interface)


def load(program: str):
    """Import a program by its file."""
    spec = importlib.util.spec_from_file_location(program, PROGRAMS / f"{program}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Where two records of :func:`run` differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [*left, *(key for key in right if key not in left)]
        pairs = [(key, left.get(key, "nothing"), right.get(key, "nothing")) for key in keys]
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        pairs = list(zip(range(len(left)), left, right, strict=True))
    else:
        return [] if left == right else [f"{where}: {left!r}, not {right!r}"]
    return [text for key, one, other in pairs for text in differences(one, other, f"{where}/{key}")]


def checkpoint_structure(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {key: structure(value, values=key in SAME) for key, value in checkpoint.items()}


def structure(value: Any, values: bool = False) -> Any:
    """Types, keys, shapes; plain numbers and strings themselves where ``values``."""
    if isinstance(value, Tensor):
        return (type(value).__name__, value.dtype, tuple(value.shape), value.requires_grad)
    if isinstance(value, Mapping):
        items = {_key(key): structure(item, values) for key, item in value.items() if not _is_average(key)}
        return (type(value).__name__, items)
    if isinstance(value, (list, tuple, set)):
        return (type(value).__name__, [structure(item, values) for item in value])
    if is_dataclass(value) and not isinstance(value, type):
        return (
            type(value).__name__,
            {f.name: structure(getattr(value, f.name), values) for f in fields(value)},
        )
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return (type(value).__name__, str(value.dtype), value.shape)
    if hasattr(value, "columns"):
        return (type(value).__name__, list(value.columns), value.shape)
    if values and isinstance(value, (bool, int, float, str, type(None))):
        return (type(value).__name__, value)
    return type(value).__name__


def _is_ours(callback: object) -> bool:
    return type(callback).__module__.partition(".")[0] == "lightning_reg"


def _is_average(key: object) -> bool:
    """Whether the entry is an average of a proximal step, which lies in the optimizer's state."""
    return isinstance(key, str) and key.startswith("lightning_reg/")


def _key(key: Any) -> Any:
    return "a path" if isinstance(key, str) and os.sep in key else key


def traces(module: nn.Module) -> tuple[Any, ...]:
    """What a callback could leave on one module: a class, attributes, hooks, rates."""
    plain = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (int, float)) and ("drop" in name or name == "p")
    }
    return (
        f"{type(module).__module__}.{type(module).__qualname__}",
        sorted(vars(module)),
        plain,
        hooks(module),
    )


def hooks(holder: object) -> dict[str, int]:
    return {name: len(value) for name, value in vars(holder).items() if "hooks" in name and value}
