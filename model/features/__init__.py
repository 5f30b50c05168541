"""How events become features: the schema, columns of events, hashed rows, prepared numerics,
ages."""
