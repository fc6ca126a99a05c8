"""Training: config, objective, state, step, loop."""
