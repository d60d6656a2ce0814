"""Dropout that can be scheduled: where a module drops, and schedules for its rates."""

from lightning_reg.dropout.audit import Audit, audit
from lightning_reg.dropout.sites import DropoutSite, find_sites, register_site
from lightning_reg.schedules.dropout import (
    AnnealedDropout,
    ByDepth,
    CurriculumDropout,
    DropHead,
    EarlyDropout,
    LateDropout,
)

__all__ = [
    "AnnealedDropout",
    "Audit",
    "ByDepth",
    "CurriculumDropout",
    "DropHead",
    "DropoutSite",
    "EarlyDropout",
    "LateDropout",
    "audit",
    "find_sites",
    "register_site",
]
