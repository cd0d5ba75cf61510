"""How others do the same job, in a few lines each, with their own defaults: images/s from file names to the host.

Each is made with a `Subject` and then called; it returns the images a second of one round. What a peer's own package
does around its recipe (its writers, its cluster) is left out, which favours it.

    open_clip               Pillow and open_clip's transform in a DataLoader with a worker for every core; the model in
                            the run's precision, softmax scores
    Hugging Face, one by one  transformers' zero-shot-image-classification pipeline as its documentation calls it: fp32,
                            one image at a time, the labels encoded again for each
    Hugging Face, batched   the same with the run's batch and precision: the labels encoded again for each batch
    clip-retrieval          its inference rebuilt: 4 loader workers, batches of 256, pinned memory, bf16 autocast on a
                            GPU, float16 embeddings to the host, no scores
    torchvision nvJPEG      `decode_jpeg` of batches on the device (libjpeg-turbo on a CPU), resized image by image
                            there, then open_clip's model in the run's precision
    NeMo Curator            its image reader and embedder rebuilt: DALI decodes batches of 100 whole images on the GPU
                            (8 threads), pixels go back to the host, `CLIPProcessor` prepares 32 at a time, fp32
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import functional as tv

from clipbatch.config import hardware, models
from clipbatch.stages.encode.model import DTYPES
from contestants import clip_model, clip_processor, clip_tokenizer, rate, settle

TEMPLATE = "a photo of a {}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What all contestants of a round work on."""

    model: str
    weights: str | None
    """A file for open_clip's model; None: drawn at random."""
    photos: list[Path]
    images: int
    """In a round; photographs are taken again as often as that takes."""
    device: str
    precision: str
    batch: int
    labels: list[str]

    def paths(self) -> list[Path]:
        """A round's files."""
        return list(islice(cycle(self.photos), self.images))


class Photos(Dataset[Tensor]):
    """open_clip's own way from a file to pixels."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor], images: int) -> None:
        self._paths, self._transform, self._images = paths, transform, images

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index % len(self._paths)]) as image:
            return self._transform(image)


class Scorer:
    """open_clip's transform and model, with the features of the labels ready."""

    def __init__(self, subject: Subject) -> None:
        if subject.model == models.DEMO:
            open_clip.add_model_config(models.config_file(subject.model))
        self.subject, self._dtype = subject, DTYPES[subject.precision]
        model, _, self.transform = open_clip.create_model_and_transforms(
            subject.model, pretrained=subject.weights, precision=subject.precision, device=subject.device
        )
        self.model, self._tokenizer = model.eval(), open_clip.get_tokenizer(subject.model)
        self.text_LD = self.text(subject.labels)

    @torch.inference_mode()
    def text(self, labels: list[str]) -> Tensor:
        """The features of `labels`, encoded now."""
        tokens = self._tokenizer([TEMPLATE.format(label) for label in labels]).to(self.subject.device)
        return self.model.encode_text(tokens, normalize=True).float()

    @torch.inference_mode()
    def score(self, pixels_BCHW: Tensor, text_LD: Tensor | None = None) -> Tensor:
        """Normalised pixels -> softmax scores on the host."""
        text_LD = self.text_LD if text_LD is None else text_LD
        pixels_BCHW = pixels_BCHW.to(self.subject.device, self._dtype, non_blocking=True)
        image_BD = self.model.encode_image(pixels_BCHW, normalize=True).float()
        return (self.model.logit_scale.exp() * image_BD @ text_LD.T).softmax(dim=-1).cpu()

    def files(self, paths: list[Path], text_LD: Tensor | None = None) -> Tensor:
        """Scores of a batch of files, prepared one after the other."""
        return self.score(torch.stack([self.transform(Image.open(path)) for path in paths]), text_LD)


class OpenClip:
    """open_clip's transform and model, fed by torch's DataLoader; its processes live through all rounds, and what they
    prepare before a round begins is off its clock."""

    def __init__(self, subject: Subject, threads: int | None = None, decoded: int | None = None) -> None:
        """threads: torch's own number of them; on a CPU the first round also tries one, and takes what was faster.
        decoded: images in a round of `decode`."""
        self._scorer, self._threads, self._cores = Scorer(subject), threads or torch.get_num_threads(), hardware.cores()
        self.threads = self._threads
        self._fixed, self._loaders = subject.device != "cpu" or self._threads == 1, {}
        for name, images in (("decode", decoded or subject.images), ("run", subject.images)):
            photos = Photos(subject.photos, self._scorer.transform, images + self._cores * subject.batch)
            self._loaders[name] = DataLoader(
                photos,
                batch_size=subject.batch,
                num_workers=self._cores,
                persistent_workers=True,
                pin_memory=subject.device != "cpu",
            )

    def decode(self) -> float:
        """Images/s from file names to normalised pixels in this process."""
        return self._rate("decode", lambda pixels_BCHW: pixels_BCHW, 1)

    def run(self) -> float:
        """Images/s from file names to scores in memory; nothing is written."""
        if not self._fixed:
            rates = {number: self._rate("run", self._scorer.score, number) for number in (1, self._threads)}
            self.threads, self._fixed = max(rates, key=rates.__getitem__), True
        return self._rate("run", self._scorer.score, self.threads)

    __call__ = run

    def _rate(self, name: str, work: Callable[[Tensor], Tensor], threads: int) -> float:
        torch.set_num_threads(threads)
        batches = iter(self._loaders[name])
        for _ in range(self._cores):
            work(next(batches))
        return rate(lambda: sum(len(work(batch)) for batch in batches), self._scorer.subject.device)


def huggingface(subject: Subject, batched: bool) -> Callable[[], float]:
    """transformers' pipeline; batched: with the subject's batch and precision, else with its defaults."""
    from transformers import pipeline

    module = clip_model(subject.model)
    pipe = pipeline(
        "zero-shot-image-classification",
        model=module.to(DTYPES[subject.precision]) if batched else module,
        tokenizer=clip_tokenizer(),
        image_processor=clip_processor(subject.model),
        device=subject.device,
        batch_size=subject.batch if batched else 1,
    )
    paths = list(map(str, subject.paths()))

    def work() -> int:
        return sum(1 for _ in pipe(paths, candidate_labels=subject.labels))

    return lambda: rate(work, subject.device)


def clip_retrieval(subject: Subject) -> Callable[[], float]:
    """clip-retrieval 2's `FilesReader` and `ClipMapper`."""
    scorer = Scorer(dataclasses.replace(subject, precision="fp32"))
    gpu = subject.device != "cpu"
    photos = Photos(subject.photos, scorer.transform, subject.images)
    loader = DataLoader(photos, batch_size=256, num_workers=4, pin_memory=gpu, prefetch_factor=2)

    @torch.no_grad()
    def work() -> int:
        count = 0
        for pixels_BCHW in loader:
            with torch.autocast(subject.device.partition(":")[0], torch.bfloat16, enabled=gpu):
                image_BD = scorer.model.encode_image(pixels_BCHW.to(subject.device))
            image_BD = image_BD / image_BD.norm(dim=-1, keepdim=True)
            count += len(image_BD.cpu().to(torch.float16).numpy())
        return count

    return lambda: rate(work, subject.device)


def resized(image_CHW: Tensor, side: int) -> Tensor:
    """torchvision's resize and crop as open_clip wants them."""
    small_CHW = tv.resize(image_CHW, [side], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    return tv.center_crop(small_CHW, [side, side])


def torchvision_nvjpeg(subject: Subject) -> Callable[[], float]:
    """torchvision's batched JPEG decoder, its resize, open_clip's model."""
    scorer, paths = Scorer(subject), subject.paths()
    size = scorer.model.visual.image_size
    side = size if isinstance(size, int) else size[0]
    normalise = scorer.transform.transforms[-1]

    def read(path: Path) -> Tensor:
        return read_file(str(path))

    def work() -> int:
        count = 0
        with ThreadPoolExecutor(hardware.cores()) as pool:
            for files in _chunks(pool.map(read, paths), subject.batch):
                images = decode_jpeg(files, ImageReadMode.RGB, device=subject.device)
                pixels_BCHW = torch.stack([resized(image_CHW, side) for image_CHW in images]).float() / 255
                count += len(scorer.score(normalise(pixels_BCHW)))
        return count

    return lambda: rate(work, subject.device)


def nemo_curator(subject: Subject) -> Callable[[], float]:
    """`ImageReaderStage` and `ImageEmbeddingStage`, reading files instead of the tar that these want."""
    from nvidia.dali import fn, pipeline_def, types

    gpu = subject.device != "cpu"
    module, processor = clip_model(subject.model).to(subject.device), clip_processor(subject.model)
    paths = subject.paths()

    @pipeline_def(batch_size=min(100, len(paths)), num_threads=8, device_id=0 if gpu else None)
    def reader() -> Any:
        encoded, _ = fn.readers.file(files=list(map(str, paths)))
        return fn.decoders.image(encoded, device="mixed" if gpu else "cpu", output_type=types.RGB)

    decode = reader()
    decode.build()

    @torch.no_grad()
    def work() -> int:
        count = 0
        while count < len(paths):
            (images,) = decode.run()
            host = images.as_cpu()
            arrays = [host.at(number) for number in range(min(len(host), len(paths) - count))]
            for some in _chunks(arrays, 32):
                pixels_BCHW = processor(images=some, return_tensors="pt")["pixel_values"].to(subject.device)
                image_BD = module.get_image_features(pixel_values=pixels_BCHW).pooler_output
                (image_BD / torch.linalg.vector_norm(image_BD, dim=-1, keepdim=True)).cpu().numpy()
            count += len(arrays)
        settle(subject.device)
        return count

    return lambda: rate(work, subject.device)


def _chunks(values: Iterable[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk


PEERS: dict[str, Callable[[Subject], Callable[[], float]]] = {
    "open_clip": OpenClip,
    "Hugging Face, one by one": lambda subject: huggingface(subject, batched=False),
    "Hugging Face, batched": lambda subject: huggingface(subject, batched=True),
    "clip-retrieval (rebuilt)": clip_retrieval,
    "torchvision nvJPEG": torchvision_nvjpeg,
    "NeMo Curator (rebuilt)": nemo_curator,
}
