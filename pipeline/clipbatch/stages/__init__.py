"""How an image flows: read, decode, encode, score, write."""
