"""What needs torch alone: in-place passes, chunks, precision, shards, and the step an optimizer takes."""
