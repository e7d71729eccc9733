"""What a student kept of its teacher, measured and shown. Imports plan, factors, objective and report."""
