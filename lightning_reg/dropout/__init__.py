"""Dropout that can be scheduled: where a module drops, and schedules for its rates."""

from lightning_reg.dropout.audit import Audit, audit
from lightning_reg.dropout.schedules import (
    AnnealedDropout,
    ByDepth,
    CurriculumDropout,
    DropHead,
    EarlyDropout,
    LateDropout,
)
from lightning_reg.dropout.sites import DropoutSite, find_sites, register_site

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
