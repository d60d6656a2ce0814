"""``lightning-reg run``: an unchanged Lightning script, with callbacks attached to every Trainer it makes."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from lightning_reg.cli.config import make_callbacks, read_callbacks
from lightning_reg.cli.errors import OneLineParser, UsageError, positive
from lightning_reg.cli.launch import launch, launched_already, process_count
from lightning_reg.cli.plan import Plan
from lightning_reg.cli.schedule_text import dropout_rate, strength
from lightning_reg.cli.script import as_program, run_script
from lightning_reg.hosts.requested import VARIABLE

__all__ = ["main", "run_parser"]

_OPTIONS = ("accelerator", "devices", "num_nodes", "precision", "strategy")


def main(argv: Sequence[str]) -> int:
    """Run a script, and return its exit status.

    Args:
        argv: the options, the script and its arguments.

    Raises:
        UsageError: an option or the callbacks' config cannot be used; nothing was started.
    """
    arguments = run_parser().parse_args(argv)
    plan = Plan(
        callbacks=_callbacks(arguments),
        options={name: getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None},
        dry_run=arguments.dry_run,
    )
    with as_program(arguments.script, arguments.arguments, arguments.module):
        make_callbacks(plan.callbacks)
        _check_target(arguments.script, arguments.module)
    with tempfile.TemporaryDirectory() as notes:
        plan = replace(plan, notes=notes)
        status = _run(plan, arguments)
        _say_what_did_not_happen(plan, arguments.script)
    return status


def _check_target(script: str, is_module: bool) -> None:
    if is_module:
        try:
            found = find_spec(script) is not None
        except (ImportError, ValueError):  # of a package around it
            found = False
    else:
        found = Path(script).is_file()
    if not found:
        what = "module" if is_module else "file"
        raise UsageError(
            f"SCRIPT: there is no {what} {script!r}; give a script's path, or -m and a module's name"
        )


def _run(plan: Plan, arguments: argparse.Namespace) -> int:
    processes = process_count(plan.options)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = plan.to_json()
    try:
        if processes * plan.options.get("num_nodes", 1) == 1 or launched_already():
            return run_script(plan, arguments.script, arguments.arguments, arguments.module)
        target = [*(["-m"] if arguments.module else []), arguments.script, *arguments.arguments]
        return launch(
            target,
            processes,
            nodes=plan.options.get("num_nodes", 1),
            node_rank=arguments.node_rank,
            address=arguments.main_address,
            port=arguments.main_port,
        )
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _say_what_did_not_happen(plan: Plan, script: str) -> None:
    if plan.noted("failed"):
        return
    if not plan.noted("trainer"):
        print(f"lightning-reg run: {script} made no Trainer, so nothing was attached", file=sys.stderr)
    elif not plan.noted("fit"):
        print(f"lightning-reg run: {script} started no fit, so nothing was regularized", file=sys.stderr)


def _callbacks(arguments: argparse.Namespace) -> list[Mapping[str, Any]]:
    """The config of all that is to be attached: the file's, then those of the other options."""
    found: list[Mapping[str, Any]] = read_callbacks(arguments.callbacks) if arguments.callbacks else []
    how = {name: getattr(arguments, name) for name in ("apply", "select") if getattr(arguments, name)}
    penalties = [
        {
            "class_path": f"lightning_reg.callbacks.{name}PenaltyCallback",
            "init_args": {"strength": value, **how},
        }
        for name, value in (("L1", arguments.l1), ("L2", arguments.l2))
        if value is not None
    ]
    if how and not penalties:
        raise UsageError(f"--{next(iter(how))} applies to --l1 and --l2; give one of them")
    found += penalties
    if arguments.dropout is not None:
        init_args = {"rate": arguments.dropout}
        found.append({"class_path": "lightning_reg.callbacks.DropoutScheduler", "init_args": init_args})
    if not found:
        raise UsageError("there is nothing to attach; give --callbacks FILE.yaml, --l1, --l2 or --dropout")
    return found


def run_parser() -> OneLineParser:
    """Return the parser of ``lightning-reg run``."""
    parser = OneLineParser(
        prog="lightning-reg run",
        description="Run a Lightning script as it is, with regularization attached to its Trainers.",
        allow_abbrev=False,
    )
    attached = parser.add_argument_group("what is attached")
    attached.add_argument(
        "--callbacks", type=Path, metavar="FILE", help="YAML, a list as in trainer.callbacks"
    )
    attached.add_argument("--l1", type=strength, metavar="λ", help="L1 strength: a number or a schedule")
    attached.add_argument("--l2", type=strength, metavar="λ", help="L2 strength: a number or a schedule")
    attached.add_argument("--apply", choices=_applies(), help="how --l1 and --l2 act (default: gradient)")
    attached.add_argument(
        "--select",
        metavar="GLOB",
        help="parameters of --l1 and --l2: weights, all or a glob (default: weights)",
    )
    attached.add_argument(
        "--dropout", type=dropout_rate, metavar="RATE", help="a number or a schedule: 'cosine(0.3, 0)'"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be reached, and end where training would start",
    )
    trainer = parser.add_argument_group("the Trainer, in place of what the script gives it")
    trainer.add_argument("--accelerator", type=_accelerator, metavar="NAME")
    trainer.add_argument("--devices", type=_devices, metavar="N", help="a number, a list '0,1', or auto")
    trainer.add_argument("--strategy", type=_strategy, metavar="NAME")
    trainer.add_argument("--precision", type=_precision, metavar="NAME")
    trainer.add_argument("--num-nodes", "--num_nodes", type=positive, metavar="M")
    nodes = parser.add_argument_group("several nodes, on each of which the command is given")
    nodes.add_argument("--node-rank", "--node_rank", type=_count, default=0, metavar="RANK")
    nodes.add_argument("--main-address", "--main_address", default="127.0.0.1", metavar="HOST")
    nodes.add_argument("--main-port", "--main_port", type=positive, default=29400, metavar="PORT")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER)
    return parser


def _applies() -> tuple[str, ...]:
    from lightning_reg.apply import Apply

    return get_args(Apply)


def _one_of(text: str, known: Sequence[str]) -> str:
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not known; accepted are {', '.join(known)}")
    return text


def _accelerator(text: str) -> str:
    from lightning.pytorch.accelerators import AcceleratorRegistry

    return _one_of(text, ("auto", "gpu", *AcceleratorRegistry.available_accelerators()))


def _strategy(text: str) -> str:
    from lightning.pytorch.strategies import StrategyRegistry

    return _one_of(text, ("auto", *StrategyRegistry.available_strategies()))


def _precision(text: str) -> str:
    from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT_STR, _PRECISION_INPUT_STR_ALIAS

    return _one_of(text, (*get_args(_PRECISION_INPUT_STR), *get_args(_PRECISION_INPUT_STR_ALIAS)))


def _devices(text: str) -> int | str:
    if text == "auto" or all(part.strip().isdecimal() for part in text.split(",")):
        number = int(text) if text.isdecimal() else text
        if number != 0:
            return number
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a number of devices; give 1 or more, a list '0,1', or auto"
    )


def _count(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
