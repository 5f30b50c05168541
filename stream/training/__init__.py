"""The loop: learn from batches, follow what is served, publish checkpoints, save snapshots,
report."""
