"""CI's workflow tries the versions that pyproject.toml promises, the oldest together too."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def test_the_versions_are_those_of_the_project():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert JOBS["tests"]["strategy"]["matrix"]["python-version"] == versions
    assert project["requires-python"] == f">={versions[0]}"
    floors = dict(re.match(r"(\w+)>=([0-9.]+)", line).groups() for line in project["dependencies"])
    steps = JOBS["oldest-releases"]["steps"]
    assert versions[0] in [step.get("with", {}).get("python-version") for step in steps]
    (install,) = [step["run"] for step in steps if "pip install" in step.get("run", "")]
    assert re.findall(r"lightning==(\S+)", install) == [f"{floors['lightning']}.0"] * 2
    assert re.findall(r"torch==(\S+)", install) == [f"{floors['torch']}.0"]
