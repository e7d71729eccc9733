"""`transformers.Trainer` for a clone: arguments, optimiser, checkpoints, metrics."""
