"""How a start looks at both models: block by block, with the norms and the segments of a block, and by regressions."""
