"""Dropout that can be scheduled: where a module drops, and schedules for its rates."""

from lightning_reg.dropout.audit import Audit, audit
from lightning_reg.dropout.sites import DropoutSite, find_sites, register_site

__all__ = ["Audit", "DropoutSite", "audit", "find_sites", "register_site"]
