"""Recorded streams: files of events, their schema, replay to a topic and recording from one."""
