"""What can be done to a system: each function makes a `Fault` for one victim."""
