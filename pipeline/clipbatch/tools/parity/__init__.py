"""Hold the pixels and scores of this machine against open_clip's own path."""
