"""The callbacks: hook wiring, and no formula."""
