"""The version of the distribution, of every role and of the command: the one place where it is written."""

VERSION = "0.1.0"
