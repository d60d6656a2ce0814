"""On what: one grammar for the names of parameters."""
