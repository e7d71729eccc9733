"""Figures of a run and the page that holds them. Imports errors only."""
