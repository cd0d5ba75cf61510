"""The stages that an image passes through: read, decode, encode, score, write."""
