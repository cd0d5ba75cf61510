"""The exported model repository in a real Triton server: the answers of a run, to the right clients."""

import json
import random
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from clipbatch.errors import DamagedError, InputError
from clipbatch.serving.triton_model import TritonModel
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder
from tests.support.triton import TritonServer, needs_triton, triton_server

CLIENTS = 8
CLOSE = 1e-3
"""Between scores of batches of other sizes, in bf16 (docs/explanation/accuracy.md)."""
GROUPED = """\
[groups.animal]
labels = ["cat", "dog"]
threshold = 0.9
[groups.vehicle]
labels = ["ship", "truck", "car, parked"]
"""
Answer = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images and 20 broken files."""
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder / "good", 200, seed=21, bad_fraction=0)
    make_folder(folder / "broken", 20, seed=22, bad_fraction=1)
    return folder


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def repository(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: `clipbatch`, and `grouped`, whose labels are in groups."""
    folder = tmp_path_factory.mktemp("triton")
    (folder / "groups.toml").write_text(GROUPED)
    export = ("export", "triton", "--model", "clipbatch-demo", "--device", "cpu", "--out", folder / "models")
    said = warm(*export, "--labels", "cifar10", "--embeddings").stdout
    assert said.startswith(f"wrote {folder / 'models' / 'clipbatch'}\n")
    warm(*export, "--labels", folder / "groups.toml", "--name", "grouped", "--batch-size", 4)
    return folder / "models"


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    needs_triton()
    scratch = tmp_path_factory.mktemp("server")
    with triton_server(repository, scratch, XDG_CACHE_HOME=str(scratch), HF_HUB_OFFLINE="1") as server:
        yield server


def run_of(warm: Cli, files: list[Path], out: Path, *options: object) -> pa.Table:
    """What `clipbatch run` says about `files`."""
    listing = "\n".join(map(str, files))
    warm("run", "-", *options, "--model", "clipbatch-demo", "--device", "cpu", "--out", out, stdin=listing)
    return rows(out)


def ask(address: str, model: str, files: list[Path]) -> Answer:
    """The outputs for `files`, sent as one request."""
    import tritonclient.http as triton

    client = triton.InferenceServerClient(address, network_timeout=600, connection_timeout=600)
    try:
        images = np.array([[path.read_bytes()] for path in files], dtype=np.object_)
        given = triton.InferInput("image", images.shape, "BYTES")
        given.set_data_from_numpy(images)
        answer = client.infer(model, [given])
        return {output["name"]: answer.as_numpy(output["name"]) for output in answer.get_response()["outputs"]}
    finally:
        client.close()


def texts(answers: list[Answer], name: str) -> list[str | None]:
    """An output of texts, with None for what is empty."""
    return [value.decode() or None for answer in answers for value in answer[name].ravel()]


def numbers(answers: list[Answer], name: str) -> NDArray[np.float32]:
    return np.concatenate([answer[name] for answer in answers]).astype(np.float32)


def column(table: pa.Table, name: str, length: int) -> NDArray[np.float32]:
    """A column of numbers or of lists, with NaN where it is null."""
    found = [np.full(length, np.nan) if value is None else np.atleast_1d(value) for value in table[name].to_pylist()]
    return np.array(found, np.float32)


def test_eight_clients_get_the_rows_of_a_run_and_none_is_mixed_up(
    server: TritonServer, warm: Cli, files: list[Path], tmp_path: Path
) -> None:
    expected = run_of(warm, files, tmp_path / "out", "--labels", "cifar10", "--embeddings")
    order = list(range(len(files)))
    random.Random(3).shuffle(order)
    sizes = [1, 1, 3, 7, 1, 32, 2, 5]
    requests = []
    while order:
        size = sizes[len(requests) % len(sizes)]
        requests.append(order[:size])
        order = order[size:]
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda cut: ask(server.address, "clipbatch", [files[at] for at in cut]), requests))
    ours = expected.take([at for cut in requests for at in cut])
    assert len(ours) == 220
    for name in ("status", "error", "label"):
        assert texts(answers, name) == ours[name].to_pylist(), name
    for name, length in (("score", 1), ("scores", 10)):
        np.testing.assert_allclose(numbers(answers, name), column(ours, name, length), atol=CLOSE)
    is_ok = np.array([status == "ok" for status in ours["status"].to_pylist()])
    assert 200 <= is_ok.sum() < 220
    found, wanted = numbers(answers, "embedding"), column(ours, "embedding", 96)
    assert np.isnan(found[~is_ok]).all()
    cosine = found[is_ok] @ wanted[is_ok].T
    assert cosine.diagonal().min() > 0.999
    assert (cosine.max(axis=1) - cosine.diagonal() < CLOSE).all()  # nobody got another image's row
    assert np.median(cosine) < 0.9  # which would have shown


def test_labels_in_groups_have_outputs_of_their_own(
    server: TritonServer, repository: Path, warm: Cli, files: list[Path], tmp_path: Path
) -> None:
    some = [*files[:4], *files[-4:]]
    labels = repository.parent / "groups.toml"
    expected = run_of(warm, some, tmp_path / "out", "--labels", labels, "--batch-size", 4)
    answers = [ask(server.address, "grouped", some[:4]), ask(server.address, "grouped", some[4:])]
    for name in ("status", "error", "animal_label", "vehicle_label"):
        assert texts(answers, name) == expected[name].to_pylist(), name
    for name, length in (("animal_scores", 2), ("vehicle_scores", 3)):
        np.testing.assert_allclose(numbers(answers, name), column(expected, name, length), atol=CLOSE)
    with pytest.raises(Exception, match="batch-size must be <= 4"):
        ask(server.address, "grouped", some)


def test_the_client_beside_the_model_prints_a_row_for_each_file(
    server: TritonServer, repository: Path, files: list[Path]
) -> None:
    broken = next(path for path in files if "broken" in path.parts)
    client = [sys.executable, repository / "clipbatch" / "client.py", "--url", server.address, files[-1], broken]
    done = subprocess.run(client, capture_output=True, text=True, check=True)
    good, bad = map(json.loads, done.stdout.splitlines())
    assert (good["file"], good["status"], good["error"], len(good["scores"])) == (str(files[-1]), "ok", "", 10)
    assert good["score"] == max(good["scores"])
    assert (bad["file"], bad["label"], bad["scores"], bad["score"]) == (str(broken), "", None, None)
    assert bad["status"] != "ok"
    assert bad["error"]


def test_an_image_as_the_body_of_a_request_is_labelled_and_scores_have_names(
    server: TritonServer, files: list[Path]
) -> None:
    import tritonclient.http as triton

    url = f"http://{server.address}/v2/models/clipbatch/infer"
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    for data, status in ((files[-1].read_bytes(), "ok"), (b"<html>", "unsupported")):
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as said:
            length = int(said.headers["Inference-Header-Content-Length"])
            found = triton.InferenceServerClient.parse_response_body(said.read(), header_length=length)
        assert found.as_numpy("status").ravel().tolist() == [status.encode()]
        assert np.isnan(found.as_numpy("scores")).tolist() == [[status != "ok"] * 10]
    client = triton.InferenceServerClient(server.address)
    image = triton.InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[files[-1].read_bytes()]], dtype=np.object_))
    wanted = [triton.InferRequestedOutput("scores", class_count=1), triton.InferRequestedOutput("label")]
    answer = client.infer("clipbatch", [image], outputs=wanted)
    client.close()
    (label,) = answer.as_numpy("label")[0]
    assert answer.as_numpy("scores")[0][0].decode().split(":")[2] == label.decode()


def test_a_backend_that_misreads_numpy_is_refused(repository: Path, tmp_path: Path) -> None:
    needs_triton()
    with (
        pytest.raises(AssertionError, match=r"cannot read the arrays of numpy 2\..*use a newer Triton"),
        triton_server(repository, tmp_path, old_numpy=False),
    ):
        pass


def test_what_is_not_as_it_was_exported_is_refused(repository: Path, tmp_path: Path) -> None:
    arguments = {"model_version": "1", "model_instance_kind": "CPU", "model_instance_device_id": "0"}
    shutil.copytree(repository / "clipbatch", tmp_path / "features")
    text = tmp_path / "features" / "1" / "text.npy"
    text.write_bytes(text.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError, match=r"text\.npy is damaged"):
        TritonModel({**arguments, "model_repository": str(tmp_path / "features")})
    shutil.copytree(repository / "clipbatch", tmp_path / "weights")
    record = tmp_path / "weights" / "1" / "clipbatch.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "weights_sha256": "ab" * 32}))
    with pytest.raises(InputError, match="are not those that the model was exported with"):
        TritonModel({**arguments, "model_repository": str(tmp_path / "weights")})


def test_devices_are_those_of_the_settings_and_nothing_is_written_over(
    warm: Cli, repository: Path, tmp_path: Path
) -> None:
    export = ("export", "triton", *DEMO, "--out", tmp_path)
    for device, group in (
        ("cpu", "kind: KIND_CPU count: 2"),
        ("cuda", "kind: KIND_GPU count: 2"),
        ("cuda:1", "kind: KIND_GPU count: 2 gpus: [ 1 ]"),
    ):
        warm(*export, "--device", device, "--name", device.replace(":", "-"), "--instances", 2)
        config = (tmp_path / device.replace(":", "-") / "config.pbtxt").read_text()
        assert f"instance_group [ {{ {group} }} ]" in config
        assert f"max_batch_size: {32 if device == 'cpu' else 256}" in config
    frozen = json.loads((tmp_path / "cuda" / "1" / "clipbatch.json").read_text())["settings"]
    assert (frozen["decoder"], frozen["precision"]) == ("dali", "fp16")
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "top.toml").write_text("top_k = 3\n")
    for wrong, said in (
        (("--name", "cuda"), "is there already"),
        (("--name", "a/b"), "is no name for a model"),
        (("--instances", 0), "--instances 0 is too few"),
        (("--model", "ViT-B32"), "Did you mean ViT-B-32"),
        (("--config", tmp_path / "top.toml"), "leave them out of --config"),
    ):
        assert said in warm(*export, *wrong, code=3).stderr, wrong
    (tmp_path / "top.toml").unlink()
    assert sorted(tmp_path.rglob("*")) == before
