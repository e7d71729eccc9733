"""The terms of the loss, the taps that feed them, and which tokens count. Imports plan."""
