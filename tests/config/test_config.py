"""Settings: what is taken from flat values and TOML files, and what is refused with which remedy."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from clipbatch.config import Settings, from_flat, read_toml
from clipbatch.errors import InputError

OTHER: dict[str, Any] = {
    "inputs": ("photos", "more.txt"),
    "root": "/data",
    "all_files": True,
    "no_header": True,
    "uri_column": "url",
    "image_column": "image",
    "columns": ("caption",),
    "limit": 3,
    "sample": 2,
    "seed": 1,
    "labels": "cat,dog",
    "template": ("a {}.", "the {}."),
    "model": "RN50",
    "pretrained": "openai",
    "precision": "bf16",
    "compile": "on",
    "compile_asked": True,
    "device": "cuda:1",
    "read_threads": 2,
    "read_timeout": 1.5,
    "read_retries": 0,
    "max_refused": 7,
    "max_bytes": 1000,
    "decoder": "dali",
    "decoder_asked": False,
    "jpeg_scale": "reduced",
    "background": "ff8000",
    "pixels": None,
    "hw_decoder_load": 0.2,
    "cpu_share": 0.25,
    "decode_threads": 3,
    "orientation": "stored",
    "max_pixels": 10,
    "decode_timeout": 2.5,
    "worker_timeout": 30.0,
    "score": "cosine",
    "top_k": 5,
    "layout": "top-k",
    "scores_dtype": "float16",
    "compression": "lz4",
    "embeddings": True,
    "engine": "ray",
    "gpus": "0,1",
    "workers": 2,
    "cpus_per_worker": 4,
    "workers_per_gpu": 3,
    "rank": 1,
    "world_size": 4,
    "shards": "3,5-9",
    "profile": "trace.json",
    "batch_size": 8,
    "shard_size": 64,
    "max_bad": "1%",
}
"""A value that is not the default, for every setting that there is."""


def test_every_setting_survives_flat_and_from_flat() -> None:
    defaults = Settings().flat()
    assert set(OTHER) == set(defaults)
    assert [name for name, value in OTHER.items() if value == defaults[name]] == []
    made = from_flat(OTHER)
    assert made.flat() == OTHER
    assert (made.source.limit, made.labels.labels, made.model.device, made.read.max_bytes) == (
        3,
        "cat,dog",
        "cuda:1",
        1000,
    )
    assert (made.decode.decoder, made.output.top_k, made.output.shard_size) == ("dali", 5, 64)
    assert from_flat({}) == Settings()


def test_replace_returns_a_copy_with_the_named_field_changed() -> None:
    first = from_flat(OTHER)
    second = first.replace(max_pixels=99)
    assert second.flat() == OTHER | {"max_pixels": 99}
    assert first.flat() == OTHER
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.model = second.model  # type: ignore[misc]


def test_lists_become_tuples_and_seconds_may_be_whole_numbers() -> None:
    made = from_flat({"inputs": ["a", "b"], "template": ["{}"], "read_timeout": 5})
    assert (made.source.inputs, made.labels.template, made.read.read_timeout) == (("a", "b"), ("{}",), 5)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"batchsize": 8}, "'batchsize'.*Did you mean batch_size"),
    ({"Shard-Size": 8}, "'Shard-Size'.*Did you mean shard_size"),
    ({"zzzz": 8}, r"there is no setting 'zzzz'\.$"),
    ({"source": {}}, "no setting 'source'"),
    ({"batch_size": "8"}, "batch_size '8' is of the wrong type: expected a whole number"),
    ({"batch_size": 8.0}, "batch_size 8.0 is of the wrong type: expected a whole number"),
    ({"batch_size": True}, "batch_size True is of the wrong type: expected a whole number"),
    ({"embeddings": 1}, "embeddings 1 is of the wrong type: expected true or false"),
    ({"read_timeout": "60"}, "read_timeout '60' is of the wrong type: expected a number"),
    ({"model": 7}, "model 7 is of the wrong type: expected text"),
    ({"labels": ["cat", "dog"]}, "labels .* is of the wrong type: expected text"),
    ({"inputs": ["a", 1]}, "inputs .* is of the wrong type: expected a list of texts"),
    ({"template": "a {}"}, "template 'a {}' is of the wrong type: expected a list of texts"),
    ({"precision": "fp61"}, "'fp61' is not known: use one of auto, fp16, bf16, fp32, fp8.*Did you mean fp16"),
    ({"decoder": "pill"}, "'pill' is not known.*Did you mean pil"),
    ({"score": None}, "score None is not known: use one of auto, softmax"),
    ({"device": "gpu"}, "device 'gpu' is not known: use auto, cpu, or cuda:N"),
    ({"device": "cuda:x"}, "device 'cuda:x'"),
    ({"device": "cpu:0"}, "device 'cpu:0'"),
    ({"limit": 0}, "limit 0 is out of range: use 1 or more"),
    ({"top_k": 0}, "top_k 0 is out of range"),
    ({"batch_size": 0}, "batch_size 0 is out of range"),
    ({"shard_size": -1}, "shard_size -1 is out of range"),
    ({"read_threads": 0}, "read_threads 0 is out of range"),
    ({"read_retries": -1}, "read_retries -1 is out of range: use 0 or more"),
    ({"max_refused": -1}, "max_refused -1 is out of range: use 0 or more"),
    ({"read_timeout": 0}, "read_timeout 0 is out of range"),
    ({"decode_timeout": 0}, "decode_timeout 0 is out of range"),
    ({"worker_timeout": 0}, "worker_timeout 0 is out of range"),
    ({"hw_decoder_load": 1.1}, "hw_decoder_load 1.1 is out of range: use 0 or more, and 1 at most"),
    ({"cpu_share": -0.1}, "cpu_share -0.1 is out of range"),
    ({"cpu_share": 0.1, "decoder": "pil"}, "cpu_share 0.1 is for decoder dali, and the decoder is pil: leave it out"),
    ({"hw_decoder_load": 0, "decoder": "torchvision"}, "hw_decoder_load 0 is for decoder dali"),
    ({"jpeg_scale": "reduced", "decoder": "pil"}, "jpeg_scale reduced is for decoders dali and torchvision"),
    ({"jpeg_scale": "reduced", "reference": True}, "and the decoder is open_clip: use auto"),
    ({"cpu_share": 0.1, "reference": True}, "cpu_share 0.1 is for decoder dali, and the decoder is open_clip"),
    ({"decode_threads": 0}, "decode_threads 0 is out of range"),
    ({"max_bytes": 0}, "max_bytes 0 is out of range"),
    ({"max_pixels": 0}, "max_pixels 0 is out of range"),
    ({"batch_size": 32, "shard_size": 100}, "shard_size 100 is not a multiple of batch_size 32: use 128"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_a_bad_value_is_refused_with_its_name_and_the_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        from_flat(values)
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("columns", ["a,b", ["a", "b"], ("a", "b")])
def test_columns_are_a_list_or_one_text_with_commas(columns: object) -> None:
    assert from_flat({"columns": columns}).source.columns == ("a", "b")
    assert from_flat({"columns": ""}).source.columns == ()


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_every_form_of_device_is_taken(device: str) -> None:
    assert from_flat({"device": device}).model.device == device


@pytest.mark.parametrize(("batch", "shard"), [(32, 32), (32, 96), (1, 7), (None, 100), (32, None)])
def test_the_shard_size_has_to_be_a_multiple_of_the_batch_size(batch: int | None, shard: int | None) -> None:
    made = from_flat({"batch_size": batch, "shard_size": shard})
    assert (made.model.batch_size, made.output.shard_size) == (batch, shard)


@pytest.mark.parametrize(
    ("max_bad", "rows", "allowed"),
    [
        (None, 10, None),
        ("0", 10, 0),
        ("500", 10, 500),
        ("0%", 10, 0),
        ("1%", 1000, 10),
        ("1%", 99, 0),
        ("0.5%", 1000, 5),
        ("33.3%", 10, 3),
        ("100%", 7, 7),
        ("29%", 100, 29),
        ("0.57%", 10_000, 57),
    ],
)
def test_max_bad_is_a_count_or_a_share_rounded_down(max_bad: str | None, rows: int, allowed: int | None) -> None:
    assert from_flat({"max_bad": max_bad}).launch.bad_allowed(rows) == allowed
    if max_bad and max_bad.endswith("%"):
        assert allowed == rows * Fraction(max_bad[:-1]) // 100


@pytest.mark.parametrize(
    "max_bad",
    [
        *("", "%", "many", "-1", "-1%", "5.5", "100.1%", "1 percent", "inf%", "nan%", "1/0%"),
    ],
)
def test_a_max_bad_of_another_form_is_refused(max_bad: str) -> None:
    with pytest.raises(InputError, match=r"is neither a count nor a percentage: use 500 or 1%"):
        from_flat({"max_bad": max_bad})


TOML = """\
# nightly
inputs = "photos"
labels = "cat,dog"
template = "a {}."
batch-size = 16
shard_size = 64
read-timeout = 5
max_bad = 500
embeddings = true
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n", "bom"])
def test_a_settings_file_is_read_with_dashes_or_underscores_and_single_texts_for_lists(
    tmp_path: Path, ending: str
) -> None:
    text = "\ufeff" + TOML if ending == "bom" else TOML.replace("\n", ending)
    (tmp_path / "run.toml").write_bytes(text.encode())
    made = from_flat(read_toml(tmp_path / "run.toml"))
    assert (made.source.inputs, made.labels.template, made.labels.labels) == (("photos",), ("a {}.",), "cat,dog")
    assert (made.model.batch_size, made.output.shard_size, made.launch.max_bad) == (16, 64, "500")
    assert (made.read.read_timeout, made.output.embeddings) == (5, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"batch_size = '8'", "batch_size '8' is of the wrong type: expected a whole number"),
        (b"top_k = 1.5", "top_k 1.5 is of the wrong type"),
        (b"max_bad = 0.01", "max_bad 0.01 is of the wrong type"),
        (b"max_bad = true", "max_bad 'True' is neither a count nor a percentage"),
        (b"root = 2026-07-01", "root .* is of the wrong type: expected text"),
        (b"modle = 'RN50'", "no setting 'modle'.*Did you mean model"),
        (b"[read]\nread_threads = 4", r"\[read\] is a table; write settings at the top level"),
        (b"read.threads = 4", r"\[read\] is a table"),
        (b"inputs = photos", r"is not a TOML file of settings: .*line 1"),
        (b"limit = 1\nlimit = 2", "is not a TOML file of settings"),
        (b"\xff\xd8\xff\xe0", "is not a TOML file of settings"),
        (b"batch_size = 32\nshard_size = 33", "not a multiple of batch_size 32: use 64"),
    ],
)
def test_a_bad_settings_file_is_refused_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_toml(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("name", "message"), [("none.toml", "No such file"), (".", "Is a directory")])
def test_a_settings_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_toml(tmp_path / name)
    assert str(tmp_path) in str(caught.value)
