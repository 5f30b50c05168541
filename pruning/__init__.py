"""Which weights exist: unit groups, auxiliary masks, schedules and policies, compaction. Pure: no
socket, clock, thread or log."""
