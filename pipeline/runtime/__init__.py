"""Runs: tasks, executors, queues and workers, and the proof that all is written."""
