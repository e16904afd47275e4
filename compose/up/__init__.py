"""`okome up`: the whole system on one machine, started in order, kept alive, and ended with nothing left running."""
