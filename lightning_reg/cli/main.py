"""``lightning-reg``: the commands and their arguments; each command's module is loaded when it runs."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_reg.cli.errors import OneLineParser, UsageError, one_line, positive, refusal
from lightning_reg.cli.script import current_directory_first

__all__ = ["main"]

#: Commands of LightningCLI, which reads their arguments itself.
_TRAINER = {
    "fit": "train a module on data, from a YAML config or flags (a LightningCLI)",
    "validate": "evaluate a module on its validation data",
    "test": "evaluate a module on its test data",
    "predict": "predict with a module",
}
#: What a command may miss: the module that is imported, and what brings it.
_EXTRAS = {
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "jsonargparse": "jsonargparse[signatures]",
    "click": "click",
    "shtab": "shtab",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments after the program's name; those of this process where None.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    command = argv[0] if argv else ""
    try:
        if command == "run":  # the script's own directory comes first there
            from lightning_reg.cli.run import main as run

            return run(argv[1:])
        with current_directory_first():
            if command in _TRAINER:
                from lightning_reg.cli.fit import main as fit

                fit(argv)
                return 0
            asks = bool({"-h", "--help"} & set(argv))
            arguments = _parser(help_of=command if asks else "").parse_args(argv)
            return int(_COMMANDS[arguments.command](arguments))
    except UsageError as error:
        print(f"{' '.join(['lightning-reg', *argv[:1]])}: {error}", file=sys.stderr)
        return 2
    except (ValueError, TypeError) as error:
        refused = refusal(error)
        if refused is None:
            raise
        print(f"lightning-reg {command}: {one_line(refused)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = _EXTRAS.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        print(f"lightning-reg {command} needs {package}; run: pip install '{package}'", file=sys.stderr)
        return 1


def _options(command: str) -> str:
    """What may stand under ``options`` in the config of a command: each name, its default, and what it is."""
    from lightning_reg import tune
    from lightning_reg.cli.tune import NOT_OPTIONS

    functions: dict[str, list[Callable[..., Any]]] = {
        "path": [tune.regularization_path],
        "find": [tune.find_strength, tune.find_dropout],
        "compare": [tune.compare],
        "stability": [tune.stability_selection],
    }
    lines = []
    for function in functions[command]:
        told = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", function.__doc__ or "", re.MULTILINE))
        kind = " (with --dropout)" if function is tune.find_dropout else ""
        lines.append(f"options in the config{kind}, with their defaults:")
        for name, parameter in inspect.signature(function).parameters.items():
            if name not in NOT_OPTIONS:
                text = " ".join(told.get(name, "").replace("``", "").split())
                lines += textwrap.wrap(
                    f"{name} ({parameter.default}): {re.sub(':[a-z]+:`~?', '`', text)}",
                    width=79,
                    initial_indent="  ",
                    subsequent_indent="      ",
                )
    return "\n".join(lines)


def _parser(help_of: str = "", of_run: Sequence[OneLineParser] = ()) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        help_of: the command whose help is asked for.
        of_run: the parser of ``run``, which reads its arguments itself, where its options are to be known.
    """
    from lightning_reg import __version__

    parser = OneLineParser(
        prog="lightning-reg", description="Regularization for PyTorch Lightning.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"lightning-reg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="train one small network six ways on scikit-learn's digits and compare",
        description=(
            "Train one small network on 300 of scikit-learn's digits, a fifth labelled at random: plain, and "
            "with L1, L2, dropout, early dropout and proximal L1, over three seeds. Print a table and what "
            "it says, and save a figure. Needs no network and takes about a minute."
        ),
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("lightning-reg-demo.png"),
        help="where to save the figure (default: %(default)s)",
    )
    demo.add_argument("--epochs", type=positive, default=60, help="epochs of each run (default: %(default)s)")
    demo.add_argument(
        "--seed", type=int, default=0, help="the first seed, of splits and runs (default: %(default)s)"
    )
    demo.add_argument("--seeds", type=positive, default=3, help="how many seeds (default: %(default)s)")
    commands.add_parser(
        "run",
        help="run a Lightning script as it is, with regularization attached to its Trainers",
        parents=of_run,
        conflict_handler="resolve",  # both have --help
    )
    for name, description in _TRAINER.items():
        commands.add_parser(name, help=description)
    for name, what in (
        ("path", "train a model at many strengths, each started from its neighbour"),
        ("find", "try strengths, or dropout rates, in a short run each"),
        ("compare", "find the best strength of several kinds of regularization, and compare these with none"),
        ("stability", "train the path on many halves of the data, and tell which weights most of them keep"),
    ):
        command = commands.add_parser(
            name,
            help=what,
            description=textwrap.fill(f"{what[0].upper()}{what[1:]}, as a config says.", 79),
            epilog=_options(name) if help_of == name else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        fields = "model, data, kinds and options" if name == "compare" else "model, data, penalty and options"
        command.add_argument("config", type=Path, help=f"YAML with {fields}")
        command.add_argument(
            "--output",
            type=Path,
            default=Path(f"lightning-reg-{name}"),
            help="folder for the CSV, the figure and finished points (default: %(default)s)",
        )
        if name == "find":
            command.add_argument(
                "--dropout", action="store_true", help="find a dropout rate; the config needs no penalty"
            )
    completion = commands.add_parser(
        "completion",
        help="print a script that completes these commands in your shell",
        description=(
            "Print a completion script. For bash: lightning-reg completion bash > "
            "~/.local/share/bash-completion/completions/lightning-reg"
        ),
    )
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return parser


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    from lightning_reg.cli.run import run_parser

    print(shtab.complete(_parser(of_run=[run_parser()]), arguments.shell))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from lightning_reg.cli.demo import demo

    demo(arguments.output, epochs=arguments.epochs, seed=arguments.seed, seeds=arguments.seeds)
    return 0


def _path(arguments: argparse.Namespace) -> int:
    from lightning_reg.cli.tune import path

    return path(arguments.config, arguments.output)


def _find(arguments: argparse.Namespace) -> int:
    from lightning_reg.cli.tune import find

    return find(arguments.config, arguments.output, dropout=arguments.dropout)


def _compare(arguments: argparse.Namespace) -> int:
    from lightning_reg.cli.compare import compare_config

    return compare_config(arguments.config, arguments.output)


def _stability(arguments: argparse.Namespace) -> int:
    from lightning_reg.cli.tune import stability

    return stability(arguments.config, arguments.output)


_COMMANDS = {
    "demo": _demo,
    "path": _path,
    "find": _find,
    "compare": _compare,
    "stability": _stability,
    "completion": _completion,
}

if __name__ == "__main__":
    sys.exit(main())
