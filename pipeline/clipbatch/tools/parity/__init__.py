"""Compares the pixels and scores of this machine with those of open_clip's own path."""
