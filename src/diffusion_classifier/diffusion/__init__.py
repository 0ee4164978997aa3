"""The noise process: schedules, prediction types, draws, losses and timestep weights."""
