"""Files, stores and http, and writing that is whole or not at all."""
