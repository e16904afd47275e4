"""How roles become a system: one machine, containers, and the command `okome`."""
