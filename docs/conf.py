"""The documentation, built without network: ``sphinx-build -W --keep-going docs build/site``."""

from __future__ import annotations

import importlib.util
import re
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "lightning-reg"
author = "The lightning-reg authors"
project_copyright = author
release = version = installed_version("lightning-reg")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["figures"]

html_theme = "furo"
html_title = "lightning-reg"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sphinx = False
html_show_search_summary = False  # fetched page by page, which a browser refuses for files
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs kept in the notebooks are shown; CI executes them apart

autosummary_generate = False  # the tables link to what the page itself documents
autodoc_member_order = "bysource"
autodoc_mock_imports = ["transformers"]
autodoc_typehints = "none"  # the signature's length; Args says what each one is
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["References"]
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|torchmetrics|lightning|collections\.abc)\..*"),
    # annotations of attributes, which their docstrings write out
    ("py:class", r"ScheduleLike|Select|ModuleSelect|lightning_reg\.select\.derived\.Derived"),
]

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Formulas are set by a MathJax that travels with the site.
mathjax_path = "mathjax/tex-chtml.js"
_MATHJAX = "sphinx-mathjax-offline"


# Hooks are Lightning's to call, and the in-place forms the engine's; the base class describes them once.
_HOOKS = {"setup", "teardown", "state_dict", "load_state_dict"}
_IN_PLACE = {"add_gradient_", "prox_"}


def _skip(app: Sphinx, what: str, name: str, found: object, skip: bool, options: object) -> bool | None:
    """Leave out of a class what its user never calls."""
    owner = getattr(found, "__qualname__", "").split(".")[0]
    hook = name.startswith("on_") or (name in _HOOKS and owner != "Attachment")
    return True if hook or (name in _IN_PLACE and owner != "Penalty") else None


# Pages that live beside the code, copied here for the build and ignored by git.
_BROUGHT = {"benchmarks": ("*.md", "results/*.png"), "notebooks": ("*.ipynb",)}


def _bring_pages(app: Sphinx, config: Config) -> None:
    """Copy them, newly changed ones only, and forget those that are gone."""
    for folder, patterns in _BROUGHT.items():
        source, target = ROOT / folder, HERE / folder
        pages = {page.relative_to(source) for pattern in patterns for page in source.glob(pattern)}
        for stale in {page.relative_to(target) for page in target.rglob("*.*")} - pages:
            (target / stale).unlink()
        for page in pages:
            (target / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / page, target / page)


def _relink(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links that hold in the repository into links that hold here, where ``docs`` is the root."""
    if docname.split("/")[0] in _BROUGHT:
        source[0] = re.sub(r"\]\(\.\./docs/", "](../", source[0])
    else:
        folders = "|".join(_BROUGHT)
        source[0] = re.sub(rf"\]\(\.\./((?:\.\./)*(?:{folders})/[^)]*\.(?:md|ipynb))", r"](\1", source[0])


def _summarise(app: Sphinx, docname: str, source: list[str]) -> None:
    """Begin each page of the reference with a table of what it documents."""
    if not docname.startswith("api/"):
        return
    module, names = "", []
    for directive, name in re.findall(
        r"^\.\. (currentmodule|automodule|autoclass|autofunction):: (\S+)", source[0], re.M
    ):
        if directive in ("currentmodule", "automodule"):
            module = name
        else:
            names.append(name if name.startswith("lightning_reg.") else f"{module}.{name}")
    if names:
        lines = "\n".join(f"   ~{name}" for name in names)
        table = f"\n```{{eval-rst}}\n.. autosummary::\n   :nosignatures:\n\n{lines}\n```\n"
        source[0] = re.sub(r"^(# .*\n)", lambda found: found[0] + table, source[0], count=1)


def _copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy the part of MathJax that sets TeX in HTML, and its fonts."""
    if error is not None or app.builder.format != "html":
        return
    spec = importlib.util.find_spec(_MATHJAX)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{_MATHJAX} is not installed; pip install -e '.[docs]'")
    source = Path(spec.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source / "tex-chtml.js", target)
    fonts = Path("output", "chtml", "fonts")
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)


def setup(app: Sphinx) -> None:
    """Register what this build adds."""
    app.connect("config-inited", _bring_pages)
    app.connect("source-read", _relink)
    app.connect("source-read", _summarise)
    app.connect("autodoc-skip-member", _skip)
    app.connect("build-finished", _copy_mathjax)
