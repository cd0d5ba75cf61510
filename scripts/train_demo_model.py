"""Train the demo model on CIFAR-10, on a CPU, from random weights.

    python scripts/train_demo_model.py --data CIFAR_DIR --out OUT_DIR [--epochs N] [--minutes M] [--seed S]

CIFAR_DIR holds train/<class>/*.jpg and test/<class>/*.jpg (scripts/cifar10.py makes it); test/ is only scored.
OUT_DIR gets clipbatch-demo.json (the config in the package) and clipbatch-demo.safetensors (fp16).

CIFAR has classes and no captions. So each step draws one caption a class from templates and synonyms, and the loss is
CLIP's with every picture of a class as a positive of its caption. Pictures get the preprocessing that open_clip will
give them (bicubic, CLIP's mean and std), shifted and flipped; the first part of the run sees them at 3/4 size.

With --minutes the schedule is cut to fit that time, so the outcome depends on the machine; without, on the arguments
alone, up to rounding. The weights in the package took 18.45 epochs on two cores: --epochs 60 --minutes 22.5 --seed 0.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW

import clipbatch

NAME = "clipbatch-demo"
CONFIG = Path(clipbatch.__file__).parent / "data" / "demo" / f"{NAME}.json"
NAMES = (
    "airplane plane aeroplane jet aircraft, automobile car sedan, bird, cat kitten, deer, dog puppy, frog toad, "
    "horse pony, ship boat, truck lorry"
)
WORDS = [words.split() for words in NAMES.split(",")]
"""For each class, in the order of CIFAR-10's numbers, its name and what else a caption may call it, half as often."""
TEMPLATES = (
    *("{}", "a {}", "a photo of a {}", "a photo of a {}", "a photo of a {}.", "a photo of the {}.", "a photo of {}"),
    *("an image of a {}", "a picture of a {}", "a blurry photo of a {}.", "a low resolution photo of a {}."),
    *("a photo of a small {}.", "a photo of a big {}.", "a close-up photo of a {}.", "a photo of one {}."),
    "this is a photo of a {}.",
)
BATCH, PEAK_LR, BETAS, WEIGHT_DECAY = 256, 4e-3, (0.9, 0.98), 0.05
WARM_UP, SMALL = 0.05, 0.4  # parts of the run: with a rising learning rate, at 3/4 size
SMOOTHING, TEXT_TO_IMAGE = 0.05, 0.1  # label smoothing; weight of the caption -> image half of the loss
Pictures = NDArray[np.uint8]  # RGB, (N, side, side, 3)


def read_split(folder: Path, *sides_px: int) -> tuple[list[Pictures], Tensor]:
    """All pictures of folder/<class>/ at each of the sizes asked for, and their class numbers (N,) int64."""
    files = [(number, file) for number, words in enumerate(WORDS) for file in sorted(folder.glob(f"{words[0]}/*.jpg"))]
    if not files:
        raise SystemExit(f"{folder}: no <class>/*.jpg here; scripts/cifar10.py makes such a folder")
    sized = [np.empty((len(files), side, side, 3), np.uint8) for side in sides_px]
    for row, (_, file) in enumerate(files):
        picture = Image.open(file).convert("RGB")
        for pictures, side in zip(sized, sides_px, strict=True):
            pictures[row] = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
    return sized, torch.tensor([number for number, _ in files])


def to_pixels(pictures: Pictures) -> Tensor:
    """uint8 (B, side, side, 3) -> pixels_BCHW, normalised fp32, channels last in memory."""
    mean_C, std_C = (torch.tensor(v) * 255 for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return ((torch.from_numpy(pictures).float() - mean_C) / std_C).permute(0, 3, 1, 2)


def pad(pictures: Pictures) -> Pictures:
    """Mirror an eighth of the side beyond each edge: the room in which `crop` shifts."""
    room = pictures.shape[1] // 8
    return np.pad(pictures, ((0, 0), (room, room), (room, room), (0, 0)), mode="reflect")


def crop(padded: Pictures, rows: NDArray[np.int64], rng: np.random.Generator) -> Pictures:
    """Draw the rows (B,) at a random shift, half of them mirrored -> uint8 (B, side, side, 3)."""
    side = padded.shape[1] * 4 // 5
    corners = rng.integers(0, padded.shape[1] - side + 1, (len(rows), 2))
    steps = np.where(rng.random(len(rows)) < 0.5, -1, 1)
    drawn = zip(rows, corners, steps, strict=True)
    return np.stack([padded[row, y : y + side, x : x + side][:, ::step] for row, (y, x), step in drawn])


def tokenise_captions(tokenizer: Any) -> list[Tensor]:
    """For each class, the tokens of all that a caption may say of it: (captions, context) int64."""
    drawn = [[words[0], *words] if len(words) > 1 else words for words in WORDS]
    return [tokenizer([template.format(word) for word in words for template in TEMPLATES]) for words in drawn]


def loss_of(logits_BC: Tensor, target_B: Tensor) -> Tensor:
    """CLIP's two cross-entropies, where all pictures of a class share the one caption of that class."""
    match_BC = functional.one_hot(target_B, logits_BC.shape[1]).float()
    found_C = (logits_BC.log_softmax(0) * match_BC).sum(0) / match_BC.sum(0).clamp(min=1)
    return functional.cross_entropy(logits_BC, target_B, label_smoothing=SMOOTHING) - TEXT_TO_IMAGE * found_C.mean()


def make_optimizer(model: torch.nn.Module) -> AdamW:
    """AdamW that decays matrices and filters, not biases, gains and the logit scale."""
    matrices, rest = ([p for p in model.parameters() if (p.ndim > 1) is big] for big in (True, False))
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    return AdamW(groups, lr=PEAK_LR, betas=BETAS, fused=True)


def learning_rate(done: float) -> float:
    """Rises over WARM_UP, falls as a cosine to zero; `done` is the part of the run gone by, 0 to 1."""
    return PEAK_LR * min(done / WARM_UP + 0.01, 0.5 + 0.5 * math.cos(math.pi * done))


def learn(pixels_BCHW: Tensor, target_B: Tensor, tokens_CT: Tensor, model: Any, optimizer: AdamW) -> float:
    """One step on a batch of pictures and one caption a class; returns the batch's accuracy, 0 to 1."""
    with torch.autocast("cpu", torch.bfloat16):
        image_BD = model.encode_image(pixels_BCHW)
    text_CD = model.encode_text(tokens_CT, normalize=True)
    logits_BC = model.logit_scale.exp() * functional.normalize(image_BD.float(), dim=-1) @ text_CD.T
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss_of(logits_BC, target_B))
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return float(logits_BC.argmax(1).eq(target_B).float().mean())


@torch.no_grad()
def top1(model: Any, tokenizer: Any, pictures: Pictures, target_N: Tensor) -> float:
    """Zero-shot accuracy, 0 to 1, with the one prompt 'a photo of a <class>', images in bf16."""
    model.eval()
    text_CD = model.encode_text(tokenizer([f"a photo of a {name}" for name, *_ in WORDS]), normalize=True)
    starts = range(0, len(pictures), 500)
    with torch.autocast("cpu", torch.bfloat16):
        image_ND = torch.cat([model.encode_image(to_pixels(pictures[a : a + 500]), normalize=True) for a in starts])
    model.train()
    return float((image_ND.float() @ text_CD.T).argmax(1).eq(target_N).float().mean())


def save(model: Any, captions: list[Tensor], file: Path) -> None:
    """Write the weights as fp16; tokens that no caption used are still noise, and are zeroed: silent, compressible."""
    unused = torch.ones(len(model.token_embedding.weight), dtype=torch.bool)
    unused[torch.cat(captions)] = False
    model.token_embedding.weight.data[unused] = 0
    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    save_file(state, file, metadata={"format": "pt"})


def train(data: Path, out: Path, *, epochs: float, minutes: float, seed: int) -> None:
    """Train for `epochs` or `minutes`, whichever is over first; print a line an epoch, write the weights at the end."""
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG.name).write_bytes(CONFIG.read_bytes())
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    open_clip.add_model_config(CONFIG)
    model: Any = open_clip.create_model(NAME).to(memory_format=torch.channels_last).train()
    tokenizer = open_clip.get_tokenizer(NAME)
    captions = tokenise_captions(tokenizer)
    side = json.loads(CONFIG.read_text())["vision_cfg"]["image_size"]
    sized, target_N = read_split(data / "train", side * 3 // 4, side)
    small, full = (pad(pictures) for pictures in sized)
    (test_pictures,), test_target = read_split(data / "test", side)

    optimizer = make_optimizer(model)
    steps_an_epoch = len(target_N) // BATCH
    started, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        right: list[float] = []
        for rows in rng.permutation(len(target_N))[: steps_an_epoch * BATCH].reshape(-1, BATCH):
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done)
            pixels_BCHW = to_pixels(crop(full if done >= SMALL else small, rows, rng))
            drawn = torch.stack([tokens[rng.integers(len(tokens))] for tokens in captions])
            right.append(learn(pixels_BCHW, target_N[rows], drawn, model, optimizer))
            step += 1
            done = max(step / (epochs * steps_an_epoch), (time.monotonic() - started) / (minutes * 60))
        row = {"epoch": step / steps_an_epoch, "elapsed_s": time.monotonic() - started, "train_top1": mean(right)}
        if done >= 1 or step % (4 * steps_an_epoch) == 0:
            row["test_top1"] = top1(model, tokenizer, test_pictures, test_target)
        print(json.dumps({name: round(value, 4) for name, value in row.items()}), flush=True)
    save(model, captions, out / f"{NAME}.safetensors")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as JPEGs: train/<class>/, test/<class>/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the config and the weights")
    parser.add_argument("--epochs", type=float, default=28)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many, the schedule cut to fit")
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
