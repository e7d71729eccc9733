"""Frozen basis times trained factor, and the student as a plain module. Imports plan."""
