"""The settings of the labels, of the model that encodes images and labels, and of what is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from clipbatch.config.validation import Checked, SettingError, at_least, setting

Precision = Literal["auto", "fp16", "bf16", "fp32", "fp8"]
Compile = Literal["auto", "on", "off"]
Score = Literal["auto", "softmax", "sigmoid", "cosine"]
Layout = Literal["list", "wide", "top-k"]
ScoresDtype = Literal["float32", "float16"]
Compression = Literal["zstd", "lz4", "snappy", "gzip", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSettings(Checked):
    """The labels to compare the images with."""

    labels: str = setting("", "Labels", "frozen", "A text or TOML FILE, a shipped set's name, or a,b,c.", short="-l")
    template: tuple[str, ...] = setting(
        (), "Labels", "frozen", "Prompt template with {} for the label, or a set: simple, openai; repeatable."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings(Checked):
    """Which model encodes the images, and how it runs."""

    model: str = setting(
        "ViT-B-32",
        "Model",
        "identity",
        "open_clip's name, clipbatch-demo, hf-hub:ORG/NAME, local-dir:FOLDER, or FILE.json.",
        short="-m",
    )
    # None: the default weights of the model, if it has any (`config.models`).
    pretrained: str | None = setting(
        None, "Model", "identity", "Weights: one of open_clip's tags, a FILE, or hf-hub:ORG/NAME."
    )
    # auto: fp16 on a GPU, bf16 on a CPU with hardware for it, else fp32.
    precision: Precision = setting("auto", "Model", "identity", "auto, fp16, bf16, fp32, or fp8 on GPUs that have it.")
    # For the image encoder. auto: on if the run uses a GPU and is long enough to gain from it.
    compile: Compile = setting("auto", "Model", "identity", "torch.compile: auto (on a GPU, for long runs), on or off.")
    # Whether the user named the value of `compile`, as `decoder_asked`.
    compile_asked: bool | None = setting(None, "", "frozen", "")
    device: str = setting("auto", "Model", "invocation", "auto, cpu, cuda, or cuda:N for one GPU.")
    # Part of the identity, since the batch size may change the last digit of scores. None: the planner's choice.
    batch_size: int | None = setting(None, "Model", "identity", "Images in a batch.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", self.device):
            raise SettingError(f"device {self.device!r} is not known: use auto, cpu, or cuda:N")
        at_least("batch_size", self.batch_size, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings(Checked):
    """What the output files hold."""

    # auto: as the model was trained: sigmoid for the SigLIP family, softmax for all others.
    score: Score = setting("auto", "Output", "output", "auto (as trained), softmax, sigmoid or cosine.")
    # list: one column `scores`, a list in label order. wide: one column per label. top-k: only the best labels.
    layout: Layout = setting("list", "Output", "output", "list: all scores in one column; wide: one each; top-k.")
    # Implies the layout top-k, whose default is 5.
    top_k: int | None = setting(None, "Output", "output", "Write the K best labels instead of all scores.")
    # Type of the scores. The score of the best label is always float32.
    scores_dtype: ScoresDtype = setting("float32", "Output", "output", "float32 or float16.")
    compression: Compression = setting("zstd", "Output", "output", "zstd, lz4, snappy, gzip or none.")
    # As float16.
    embeddings: bool = setting(False, "Output", "output", "Also write each image's embedding.")
    # A multiple of batch_size. None: the planner's choice.
    shard_size: int | None = setting(
        None, "Output", "identity", "Rows in a part file; default: about a minute of work."
    )

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("top_k", self.top_k, 1)
        at_least("shard_size", self.shard_size, 1)
        if self.top_k and self.layout == "wide":
            raise SettingError("top_k goes with layout top-k, not with wide: leave one of them out")

    @property
    def best(self) -> int | None:
        """Number of labels to write per image; None: the scores of all labels."""
        return self.top_k or (5 if self.layout == "top-k" else None)
