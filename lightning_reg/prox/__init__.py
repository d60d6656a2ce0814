"""Proximal operators as pure functions, and projections, which are those of sets."""
