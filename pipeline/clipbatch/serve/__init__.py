"""A model that stays loaded, for jobs dropped into a folder and for requests over HTTP."""

from clipbatch.serve.http import Limits
from clipbatch.serve.service import serve

__all__ = ["Limits", "serve"]
