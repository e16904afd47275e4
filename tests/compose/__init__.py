"""The one-machine supervisor and the command."""
