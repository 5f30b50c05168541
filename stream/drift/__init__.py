"""Drift: signals of the learner, detectors on them, calibration to a rate of false alarms."""
