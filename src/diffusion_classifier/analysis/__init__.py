"""Analysis of models and runs: calibration, speed, frontiers, robustness, inversion, figures and reports."""
