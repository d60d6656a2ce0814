"""What the documentation shows runs, its links lead somewhere, and every public name is in its reference."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_reg
import lightning_reg.callbacks
import lightning_reg.data
import lightning_reg.look.plot
import lightning_reg.metrics
import lightning_reg.penalties
import lightning_reg.tune
from lightning_reg import Penalty

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BROUGHT = {"benchmarks", "notebooks"}  # copies that the build makes
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] not in BROUGHT]
PUBLIC = [
    lightning_reg,
    lightning_reg.callbacks,
    lightning_reg.data,
    lightning_reg.metrics,
    lightning_reg.look.plot,
    lightning_reg.tune,
]


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class Net(pl.LightningModule):
    """What the pages' selections name: an encoder, a head, filters, dropout, two logged losses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 8), nn.ReLU()
        )
        self.head = nn.Linear(8, 3)
        self.example_input_array = torch.zeros(1, 1, 6, 6)

    def forward(self, x):
        return self.head(self.encoder(x))

    def _step(self, batch, name):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log(name, loss, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val_loss")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class ShortTrainer(pl.Trainer):
    """The Trainer that pages make, for two steps and without files."""

    made: ClassVar[list[ShortTrainer]] = []

    def __init__(self, **arguments):
        self.made.append(self)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        short = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}
        super().__init__(**{**arguments, **quiet, **short})


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in [ROOT / "README.md", *PAGES]
        # paths and searches take minutes, and train by themselves: once is enough, in the test below
        if blocks(page, "python") and page.stem != "choosing-strength"
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_python_block_runs_and_every_trainer_trains(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pl, "Trainer", ShortTrainer)
    monkeypatch.setattr(ShortTrainer, "made", [])
    names = {}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, python block {number}", "exec"), names)
    data = DataLoader(TensorDataset(torch.randn(8, 1, 6, 6), torch.arange(8) % 3), batch_size=4)
    for trainer in ShortTrainer.made:
        if trainer.global_step == 0:  # else it has trained on what the page gave it
            trainer.fit(Net(), data, data)
            assert trainer.global_step == 2


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_code_fits_85_columns(page):
    for language in ("python", "yaml"):
        for line in "".join(blocks(page, language)).splitlines():
            assert len(line) <= 85, line


@pytest.mark.slow
def test_every_python_block_runs_by_itself():
    command = [sys.executable, "-m", "tests.documentation_blocks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_source_in_contributing_is_the_source():
    (block,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    (quoted,) = ast.parse(block).body
    source = ast.parse(inspect.getsource(lightning_reg.NuclearNorm))
    for node in ast.walk(source):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    assert ast.unparse(quoted) == ast.unparse(source.body[0])


def test_the_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:lightning_reg|tests|docs)/[\w/]*(?:\.\w+)?)`", text):
        assert (ROOT / name).exists(), name


def test_yaml_of_the_docs_is_the_example():
    yaml = pytest.importorskip("yaml")
    (block,) = blocks(DOCS / "config.md", "yaml")
    example = yaml.safe_load((ROOT / "examples" / "config.yaml").read_text())["trainer"]["callbacks"]
    assert yaml.safe_load(block)["trainer"]["callbacks"] == example


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(#[^)]*)?\)", page.read_text(encoding="utf-8")):
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor[1:] in anchors(found), f"{page.name} links to {target}{anchor}"


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_a_method_page_has_every_part_and_a_measured_cost(page):
    text = page.read_text(encoding="utf-8")
    parts = dict(re.findall(r"^\*\*(\w[^*]*)\.\*\*(.*?)(?=^\*\*\w[^*]*\.\*\*|\Z)", text, re.M | re.S))
    names = ["What it does", "Formula", "When to use it", "When not", "Use", "Pitfalls", "Cost", "Reference"]
    assert list(parts) == names
    assert re.search(r"\d", parts["Cost"]) and re.search(r"\]\(\.\./\.\./benchmarks/\w+\.md\)", parts["Cost"])


def test_every_penalty_is_measured():
    records = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    cases = " ".join(row["case"] for record in records for row in record["rows"])
    for name in lightning_reg.penalties.__all__:
        named = "elastic net" if name == "ElasticNet" else name
        abstract = inspect.isabstract(getattr(lightning_reg.penalties, name))
        assert abstract or re.search(rf"\b{named}\b", cases), name


def test_every_figure_is_made_by_one_command(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    made = {name for names in importlib.import_module("make").FIGURES for name in names}
    shown = set()
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]:
        for target in re.findall(r"!\[[^\]]*\]\((?!https?:)([^)#]*)\)", page.read_text(encoding="utf-8")):
            shown.add((page.parent / target).relative_to(DOCS / "figures").name)
    assert shown == made  # what main() saves under these names, or it fails
    assert {path.name for path in (DOCS / "figures").glob("*.[ps][nv]g")} == made


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
    entries = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    for page in PAGES:
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        assert name == "index" or any(fnmatchcase(name, entry) for entry in entries), name


@pytest.mark.slow
def test_a_page_that_is_wider_than_its_window_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    check_widths = importlib.import_module("check_widths")
    if check_widths.browser() is None:
        pytest.skip("Chromium is not installed")
    page = '<!doctype html><meta name="viewport" content="width=device-width"><body>'
    (tmp_path / "good.html").write_text(f'{page}<p style="overflow-x: auto"><img src="wide.svg"></p>')
    (tmp_path / "wide.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="2000" height="9"/>')
    (tmp_path / "wide.html").write_text(f'{page}<div style="width: 500px">text</div>')
    (tmp_path / "lost.html").write_text(f'{page}<img src="lost.png"><span class="math">x</span>')
    found = check_widths.look(tmp_path, check_widths.browser())
    assert sorted({line.partition(":")[0] for line in found}) == [
        "lost.html at 1280",
        "lost.html at 390",
        "wide.html at 390",
    ]
    assert len(found) == 2 * 2 + 2  # the picture and the formula at each width, both themes


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_public_name_is_described_in_the_reference(module):
    directives = set()
    for page in sorted((DOCS / "api").glob("*.md")):
        current = ""
        for kind, name in re.findall(r"^\.\. (\w+):: ([\w.]+)$", page.read_text(), re.MULTILINE):
            if kind in ("currentmodule", "automodule"):
                current = name
            else:
                directives.add(name if name.startswith("lightning_reg") else f"{current}.{name}")
    missing = {f"{module.__name__}.{name}" for name in module.__all__} - directives
    assert missing - {"lightning_reg.Apply"} == set()
    assert "lightning_reg.apply.term.Apply" in directives


def test_every_penalty_is_on_a_page_of_its_methods():
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "methods").glob("*.md"))
    public = [getattr(lightning_reg, name) for name in lightning_reg.__all__]
    for cls in public:
        if inspect.isclass(cls) and issubclass(cls, Penalty) and cls is not Penalty:
            name = cls.__name__
            assert f"{{py:class}}`lightning_reg.{name}`" in text, f"{name} is on no page of docs/methods"


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_a_public_name_is_what_it_says_and_has_a_docstring(module):
    for name in module.__all__:  # loads what is loaded late, which must not shadow a function of its name
        getattr(module, name)
    for name in module.__all__:
        public = getattr(module, name)
        assert not inspect.ismodule(public), name
        assert name == "Apply" or inspect.getdoc(public), name
