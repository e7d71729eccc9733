"""Figures of a run. Imports errors only."""
