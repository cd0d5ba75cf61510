"""The run directory: what is in it, how it is created, checked and repaired."""
