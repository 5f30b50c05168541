"""Recorded files of any format, compression and encoding, as raw rows."""
