"""A small OpenCLIP model that ships with clipbatch, so that it can be tried and tested without the internet.

`clipbatch-demo.json` is the open_clip model config, `clipbatch-demo.safetensors` the weights (fp16, 4.0 MB), `train.py`
the recipe, `images/` drawn pictures to try it on. The model tells CIFAR-10's ten classes apart, at 64 px, and knows
nothing else, but is sure of itself about everything else too: a demo and a test fixture, no product.
"""
