"""Label millions of images with an OpenCLIP model; leave Parquet that can be queried at once."""

__version__ = "0.1.0"
