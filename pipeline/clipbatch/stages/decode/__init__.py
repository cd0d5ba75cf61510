"""The decode stage: turns encoded bytes into a batch of uint8 pixels on the encoder's device.

The pixels are upright, resized and cropped as the model requires. The run's fast decoder (DALI or torchvision) decodes
images whose header `inspect` accepts. Pillow decodes all others, and those on which the fast decoder fails. Which
decoder an image gets depends only on the image.
"""

from clipbatch.stages.decode.stage import Decode

__all__ = ["Decode"]
