"""Features: the schema, columns of events, hashed rows, numerics, and ages of values."""
