"""`transformers.Trainer` for a clone: arguments, optimiser, checkpoints, metrics. Imports the model and what is below."""
