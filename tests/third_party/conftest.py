"""The programs are run, not collected; what torchvision needs is declared before Lightning is imported."""

from .torchvision_operators import sitecustomize  # noqa: F401

collect_ignore = ["programs", "torchvision_operators"]
