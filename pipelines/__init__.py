"""Pipelines: fit, evaluate, demo, and what else runs on Ray."""
