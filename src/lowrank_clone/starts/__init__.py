"""Starts: pure functions from the teacher, the plan and some text to factors and norms, by the student's names.

random        LRC, arXiv 2505.12781: normal factors; norms as their family starts them
channels      RED, arXiv 2605.29327: one set of channels for all factors, chosen by the teacher's activations
calibrated    ours: regressions that follow the teacher's residual stream through the student, block by block

Imports plan, factors, and the head and the evaluation of objective.
"""
