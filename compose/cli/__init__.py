"""The command `okome`."""
