"""Snapshots: the files from which a restart goes on, what is in them, and how they are written
beside the learning."""
