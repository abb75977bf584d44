"""Sections of a run's settings: type, default, bounds and description of each."""
