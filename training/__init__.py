"""How it steps: state, train step, optimiser, loop, checkpoints, metrics."""
