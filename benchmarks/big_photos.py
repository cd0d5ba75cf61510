"""What decoding big photographs at a reduced scale gains, and what it does to pixels and embeddings.

    python benchmarks/big_photos.py [FOLDER] [--photos N] [--rounds N] [--report PATH]

Photographs of 12, 24 and 50 megapixels are made of those in FOLDER: enlarged (Lanczos), with sensor noise (sigma 3 of
255), saved as JPEG of quality 92 with 4:2:0 chroma. Each is decoded by the decode stage of a run with `--jpeg-scale
full` and `--jpeg-scale reduced`, in turns, on one core; the figure is images per second of CPU time, so that others on
the machine count less. Then the pixels of both are compared with open_clip's own transform (Pillow, full size), and the
embeddings of these pixels in fp32: by the embedded model, and by a ViT-B-32 of random weights.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

import timing
from clipbatch.config import DecodeSettings, ModelSettings
from clipbatch.config import models as catalog
from clipbatch.stages.decode import Decode
from clipbatch.stages.decode.geometry import Target
from clipbatch.stages.encode import load
from clipbatch.types import Encoded, ItemBatch, ReadBatch

SHARED_PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"
MEGAPIXELS = (12, 24, 50)
SCALES = ("full", "reduced")
EXPECTED = (
    "reduced at least twice as fast from 12 megapixels on, as inverse DCT, colour conversion and resizing shrink with "
    "the square of the scale and entropy decoding stays; pixels within 0.5 of 255 in the mean; cosines 0.999 and more."
)


def enlarged(path: Path, megapixels: int, rng: np.random.Generator) -> bytes:
    """The photograph at `path`, as a JPEG of so many megapixels with noise in it."""
    with Image.open(path) as image:
        factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        size = (round(image.width * factor), round(image.height * factor))
        big = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), np.int16)
    noise = rng.normal(0, 3, big.shape[:2]).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray((big + noise[..., None]).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def decoder(scale: str, size: int) -> Callable[[list[bytes]], Tensor]:
    """The decode stage of a run, on batches of one."""
    target = Target(height=size, width=size, resize_mode="shortest", interpolation="bicubic", fill=0)
    settings = DecodeSettings(decoder="torchvision", jpeg_scale=scale)  # type: ignore[arg-type]
    stage = Decode(settings, target, batch_size=1, device="cpu", threads=1)
    source = ItemBatch(shard=0, start=0, items=(), rows=pa.table({}), last=True)

    def decode(files: list[bytes]) -> Tensor:
        made = [stage(ReadBatch(source=source, slots=(Encoded(data=bytearray(data)),))) for data in files]
        return torch.cat([batch.pixels_BCHW for batch in made])

    return decode


def reference(files: list[bytes], size: int) -> Tensor:
    """open_clip's transform without its normalisation."""
    transform = open_clip.image_transform(size, is_train=False)
    transform.transforms = transform.transforms[:-2]
    made = [np.asarray(transform(Image.open(io.BytesIO(data)))) for data in files]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


@torch.inference_mode()
def cosines(module: Any, pixels: Tensor, exact: Tensor) -> Tensor:
    mean, std = (torch.tensor(module.visual.preprocess_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    ours, theirs = (module.encode_image((some / 255 - mean) / std) for some in (pixels, exact))
    return torch.nn.functional.cosine_similarity(ours, theirs)


def measure(photos: list[Path], megapixels: int, models: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Both scales on photographs of one size."""
    rng = np.random.default_rng(0)
    files = [enlarged(path, megapixels, rng) for path in photos]
    sizes = {name: model.visual.preprocess_cfg["size"] for name, model in models.items()}
    sizes = {name: size[0] if isinstance(size, (tuple, list)) else size for name, size in sizes.items()}

    def rate(scale: str) -> float:
        decode, begun = decoder(scale, 224), time.process_time()
        decode(files)
        return len(files) / (time.process_time() - begun)

    rates = timing.interleave({scale: lambda scale=scale: rate(scale) for scale in SCALES}, rounds)  # type: ignore[misc]
    parity: dict[str, Any] = {}
    for name, module in models.items():
        exact = reference(files, sizes[name])
        for scale in SCALES:
            pixels = decoder(scale, sizes[name])(files)
            off = (pixels.int() - exact.int()).abs().float()
            near = cosines(module, pixels, exact)
            parity[f"{name}, {scale}"] = {
                "pixels, mean": float(off.mean()),
                "pixels, most": float(off.max()),
                "cosine, mean": float(near.mean()),
                "cosine, worst": float(near.min()),
            }
    spreads = {scale: timing.spread(values) for scale, values in rates.items()}
    gain = timing.ratios(rates["reduced"], rates["full"])
    mb = sum(map(len, files)) / len(files) / 1e6
    return {"photos": len(files), "mb": mb, "rates": spreads, "gain": gain, "parity": parity}


def tables(megapixels: int, found: dict[str, Any]) -> str:
    """What was found for one size, in words."""
    rates = [(name, rate.text(2)) for name, rate in found["rates"].items()]
    rates.append(("reduced / full", found["gain"].text(2)))
    parity = [(name, *(f"{value:.4f}" for value in facts.values())) for name, facts in found["parity"].items()]
    header = ("against open_clip", *next(iter(found["parity"].values())))
    title = f"## {megapixels} megapixels: {found['photos']} photographs of {found['mb']:.1f} MB"
    speed = timing.table(("", "images per second of CPU time"), rates)
    return f"{title}\n\n{speed}\n\n{timing.table(header, parity)}"


def main() -> None:
    parser: argparse.ArgumentParser = timing.arguments("Measure decoding big photographs at a reduced scale.")
    parser.add_argument("folder", nargs="?", type=Path, default=SHARED_PHOTOS, help="of photographs")
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megapixels", type=int, nargs="+", default=MEGAPIXELS)
    args = parser.parse_args()
    on, photos = timing.machine(), sorted(args.folder.glob("*.jpg"))[: args.photos]
    if not photos:
        raise SystemExit(f"{args.folder} holds no .jpg")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = open_clip.create_model("ViT-B-32").eval()
    random.visual.preprocess_cfg = open_clip.transform.merge_preprocess_dict({}, {"size": 224}) | {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
    }
    models = {
        "embedded": load(ModelSettings(model=catalog.DEMO, pretrained="embedded")).module,
        "random ViT-B-32": random,
    }
    found = {megapixels: measure(photos, megapixels, models, args.rounds) for megapixels in args.megapixels}
    print(f"{len(photos)} photographs", file=sys.stderr)
    body = "\n\n".join(tables(megapixels, one) for megapixels, one in found.items())
    timing.finish("Big photographs", body, EXPECTED, {"machine": on, "sizes": found}, args.report)


if __name__ == "__main__":
    main()
