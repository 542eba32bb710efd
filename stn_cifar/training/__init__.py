"""Training: the loop, its step, losses, optimizer, evaluation and checkpoints."""
