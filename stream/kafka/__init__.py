"""Kafka: connections, reading a topic in order, batches of events, writing."""
