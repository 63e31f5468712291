"""Trackers: who else gets the rows of steps.parquet and metrics.parquet. A file each."""

from equipoise.pipelines.trackers.tracker import Point, Tracker, check_tracker, tracker_for

__all__ = ["Point", "Tracker", "check_tracker", "tracker_for"]
