"""When, and how strong."""
