"""The way from a checkpoint to a score: the store in Redis, the scorer that follows it, and HTTP
around a scorer."""
