"""List what is to be labelled: names and places, no bytes."""
