"""What a run costs in FLOPs, memory and hours, from the plan alone. Imports plan, factors and objective."""
