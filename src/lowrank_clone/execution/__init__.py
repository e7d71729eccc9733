"""How teacher and student run: in turn, layer by layer, compiled, checkpointed. Imports plan and objective."""
