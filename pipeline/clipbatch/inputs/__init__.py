"""List the images of a run: their names and where they are. Reads no image, unless a table's columns are unclear."""
