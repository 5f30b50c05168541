"""Several processes that score at one port, with one copy of the tables."""
