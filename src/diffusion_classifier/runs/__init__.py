"""Evaluations on disk: specification, rows, evaluators, summaries."""
