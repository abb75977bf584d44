"""Attacks on the global model, and robust aggregation of the cohort's models ([page](docs/robustness.md))."""
