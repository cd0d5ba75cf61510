"""Local files, object stores and the web: reading them, and writing files that appear whole or not at all."""
