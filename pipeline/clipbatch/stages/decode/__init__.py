"""Encoded bytes -> a batch of uint8 pixels on the encoder's device, upright, resized and cropped as the model wants.

The fast decoder of the run (DALI or torchvision) takes what `inspect` vouches for; Pillow has the last word on the
rest and on what the fast one fails on. Which decoder takes an image depends on the image alone.
"""

from clipbatch.stages.decode.stage import Decode

__all__ = ["Decode"]
