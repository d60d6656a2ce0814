"""Which weights stand and fall together."""
