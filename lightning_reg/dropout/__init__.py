"""Dropout that can be scheduled: where a module drops, and schedules for its rates."""

from lightning_reg.dropout.find import find_sites
from lightning_reg.dropout.known import register_site
from lightning_reg.dropout.plain import DropoutHandle, Sampled, mc_dropout, schedule_dropout
from lightning_reg.dropout.report import DropoutReport
from lightning_reg.dropout.sites import DropoutSite
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
    "ByDepth",
    "CurriculumDropout",
    "DropHead",
    "DropoutHandle",
    "DropoutReport",
    "DropoutSite",
    "EarlyDropout",
    "LateDropout",
    "Sampled",
    "find_sites",
    "mc_dropout",
    "register_site",
    "schedule_dropout",
]
