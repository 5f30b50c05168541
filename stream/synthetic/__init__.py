"""Synthetic click streams with known drifts."""
