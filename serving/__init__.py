"""How a checkpoint reaches a score: the store in Redis, the scorer that follows it, HTTP around a
scorer."""
