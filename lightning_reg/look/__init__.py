"""What was reached, and what came of it."""
