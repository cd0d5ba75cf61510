"""import-head and fit-head, against torch's and scikit-learn's own predictions."""

import itertools
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from clipbatch.config import head_files
from clipbatch.errors import InputError
from clipbatch.stages.heads import Heads
from clipbatch.storage.atomic import file_sha256
from clipbatch.tools.heads import fit, importing
from tests.conftest import Cli, rows
from tests.support.corpus import make_folder

DEMO_WEIGHTS = Path(importing.__file__).parents[2] / "data" / "demo" / "clipbatch-demo.safetensors"
DEMO = importing.Request(model="clipbatch-demo")


def _outputs(head: Path, image_BD: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(Heads(head_files.load([f"a={head}"]), "cpu")(torch.from_numpy(image_BD)))


def _images(count: int, width: int) -> NDArray[np.float32]:
    values = np.random.default_rng(0).normal(size=(count, width))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


class Aesthetic(nn.Module):
    """The layout of the public predictors on CLIP's embeddings that have five layers and no activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [width, 1024, 128, 64, 16, 1]
        linear = [nn.Linear(before, after) for before, after in itertools.pairwise(sizes)]
        first, second, third, fourth, last = linear
        dropped = (first, nn.Dropout(0.2), second, nn.Dropout(0.2), third, nn.Dropout(0.1), fourth, last)
        self.layers = nn.Sequential(*dropped)

    def forward(self, image_BD: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(image_BD)
        return found


def test_aesthetic_predictors_give_the_values_of_their_torch_modules(warm: Cli, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image_BD = _images(100, 96)
    for name, module in (("mlp", Aesthetic(96)), ("linear", nn.Linear(96, 1))):
        torch.save(module.state_dict(), tmp_path / f"{name}.pth")
        out = tmp_path / f"{name}.safetensors"
        options = ("--model", "clipbatch-demo", "--outputs", " how nice ", "--json", "--out", out)
        said = warm("import-head", tmp_path / f"{name}.pth", *options).stdout
        assert json.loads(said)["outputs"] == ["how nice"]
        assert json.loads(said)["weights_sha256"] == file_sha256(DEMO_WEIGHTS)
        assert json.loads(said)["quick_gelu"] is False
        expected = module.double().eval()(torch.from_numpy(image_BD).double()).detach().numpy()
        np.testing.assert_allclose(_outputs(out, image_BD), expected, atol=1e-5)
    error = warm("import-head", tmp_path / "mlp.pth", "--model", "clipbatch-demo", "--out", out, code=3).stderr
    assert "is there already" in error


@pytest.mark.parametrize("classes", [2, 4])
def test_a_logistic_regression_gives_the_probabilities_of_scikit_learn(tmp_path: Path, classes: int) -> None:
    image_BD = _images(300, 96)
    names = np.array(["cat", "dog", "bird", "ship"])[np.random.default_rng(1).integers(0, classes, 300)]
    model = LogisticRegression(C=10).fit(image_BD, names)
    np.savez(tmp_path / "a.npz", coef=model.coef_, intercept=model.intercept_, classes=model.classes_.astype(str))
    file = importing.import_head(tmp_path / "a.npz", tmp_path / "a.safetensors", DEMO)
    assert list(file.head.outputs) == model.classes_.tolist()
    expected = model.predict_proba(image_BD)
    np.testing.assert_allclose(_outputs(tmp_path / "a.safetensors", image_BD), expected, atol=1e-6)
    if classes == 2:
        one = importing.Request(model="clipbatch-demo", result="probabilities")
        file = importing.import_head(tmp_path / "a.npz", tmp_path / "one.safetensors", one)
        assert list(file.head.outputs) == [model.classes_[1]]
        np.testing.assert_allclose(_outputs(tmp_path / "one.safetensors", image_BD)[:, 0], expected[:, 1], atol=1e-6)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pickle.pth", "holds more than tensors"),
        ("object.npz", "cannot be read without pickles"),
        ("model.pkl", "a pickle of scikit-learn is not read"),
        ("conv.safetensors", "which is no linear layer"),
        ("order.safetensors", "takes 9 numbers, and the layer before it gives 4"),
        ("nan.safetensors", "values that are not finite"),
        ("names.safetensors", "the order of its layers 'first' and 'second' cannot be told"),
        ("equal.safetensors", "the order of its layers 'block2.down' and 'block2.up' cannot be told"),
        ("some.safetensors", "the order of its layers 'last' and 'layers.0' cannot be told"),
        ("other.npz", "it has to have coef and intercept"),
    ],
)
def test_what_is_no_head_is_refused_and_nothing_is_written(
    tmp_path: Path, kind: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / kind
    if kind in ("pickle.pth", "model.pkl"):
        path.write_bytes(pickle.dumps({"weight": Evil()}))
    elif kind == "object.npz":
        np.savez(path, coef=np.array([[Evil()]], object), intercept=np.zeros(1))
    elif kind == "other.npz":
        np.savez(path, weights=np.zeros(3))
    else:
        tensors = {
            "conv": {"0.weight": np.ones((4, 3, 2, 2))},
            "order": {"layers.0.weight": np.ones((4, 8)), "layers.2.weight": np.ones((2, 9))},
            "names": {"second.weight": np.ones((8, 8)), "first.weight": np.ones((8, 8))},
            "equal": {f"block{number}.weight": np.ones((8, 8)) for number in ("1.up", "2.up", "2.down")},
            "some": {"layers.0.weight": np.ones((8, 8)), "last.weight": np.ones((8, 8))},
            "nan": {"weight": np.full((1, 96), np.nan), "bias": np.ones(1)},
        }
        save_file(tensors[path.stem], path)
    with pytest.raises(InputError, match=said):
        importing.import_head(path, tmp_path / "out.safetensors", DEMO)
    assert "this ran" not in capfd.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == [kind]


@pytest.fixture(scope="module")
def run(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with embeddings whose input carries `kind`, which is what the model says for most images."""
    folder = tmp_path_factory.mktemp("fit")
    make_folder(folder / "in", 200, seed=41, bad_fraction=0.1)
    names = sorted(str(path) for path in (folder / "in").rglob("*") if path.is_file())
    (folder / "plain.txt").write_text("\n".join(names))
    options = ("--labels", "cat,ship", "--model", "clipbatch-demo")
    warm("run", folder / "plain.txt", *options, "--out", folder / "first")
    rng, lines = np.random.default_rng(0), ["uri,kind"]
    for row in rows(folder / "first").to_pylist():
        kind = (row["label"] or "cat") if rng.random() < 0.9 else str(rng.choice(["cat", "ship", ""]))
        lines.append(f"{row['uri']},{kind}")
    (folder / "in.csv").write_text("\n".join(lines))
    warm("run", folder / "in.csv", *options, "--embeddings", "--out", folder / "run")
    return folder / "run"


def test_a_fitted_head_is_the_probe_of_scikit_learn_on_the_same_rows(warm: Cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "kind.safetensors"
    found = json.loads(warm("fit-head", run, "--truth", "kind", "--c", 10, "--out", out, "--json").stdout)
    table = [row for row in rows(run).to_pylist() if row["status"] == "ok" and row["kind"]]
    image_BD = np.array([row["embedding"] for row in table], np.float32)
    kinds = np.array([row["kind"] for row in table])
    assert found["classes"] == ["cat", "ship"]
    assert found["fitted_on"] + found["held_out"] == len(table)
    assert found["held_out"] == sum(round(0.2 * (kinds == name).sum()) for name in ("cat", "ship"))
    warm("rescore", run, "--head", f"kind_head={out}", "--out", tmp_path / "again")
    again = [row for row in rows(tmp_path / "again").to_pylist() if row["status"] == "ok" and row["kind"]]
    whole = LogisticRegression(C=10, max_iter=2000).fit(image_BD, kinds)
    ours = np.array([row["kind_head_label"] for row in again])
    assert (ours == kinds).mean() >= whole.score(image_BD, kinds) - 0.05  # it was fitted on four fifths of the rows
    assert found["accuracy"]["value"] > found["most_frequent"]
    np.savez(tmp_path / "other.npz", coef=np.ones((3, 512)), intercept=np.zeros(3))
    options = ("--run", run, "--out", tmp_path / "other.safetensors")
    said = warm("import-head", tmp_path / "other.npz", *options, code=3).stderr
    assert "takes embeddings of 512 numbers" in said
    assert f"those of {run} have 96" in said
    assert not (tmp_path / "other.safetensors").exists()


def test_the_probe_on_given_rows_is_that_of_scikit_learn() -> None:
    image_BD, rng = _images(400, 32), np.random.default_rng(3)
    code_B = (image_BD @ rng.normal(size=(32, 3))).argmax(axis=1).astype(np.int32)
    for classes in (3, 2):
        codes = np.minimum(code_B, classes - 1)
        (weight, bias), converged = fit._probe(image_BD, codes, 10.0)
        theirs = LogisticRegression(C=10, max_iter=2000).fit(image_BD, codes).decision_function(image_BD)
        ours = image_BD @ weight.T + bias
        assert converged
        np.testing.assert_allclose(ours[:, 1] - ours[:, 0] if classes == 2 else ours, theirs, atol=1e-3)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--truth", "label"), "is a column that the run itself has made"),
        (("--truth", "kind", "--held-out", 1.5), "--held-out 1.5 is out of range"),
        (("--truth", "kind", "--c", 0), "--c 0.0 is out of range"),
        (("--truth", "one.csv"), "'ship' has 1 image"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    warm: Cli, run: Path, tmp_path: Path, args: tuple[object, ...], said: str
) -> None:
    good = [row["row_id"] for row in rows(run).to_pylist() if row["status"] == "ok"][:9]
    lines = [f"{row_id},{'cat' if at else 'ship'}" for at, row_id in enumerate(good)]
    (tmp_path / "one.csv").write_text("\n".join(["row_id,truth", *lines]))
    error = warm("fit-head", run, *args, "--out", tmp_path / "a.safetensors", code=3, cwd=tmp_path).stderr
    assert said in error
    assert not (tmp_path / "a.safetensors").exists()


def test_a_missing_scikit_learn_is_named_with_its_extra(
    warm: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    error = warm("fit-head", run, "--truth", "kind", "--out", tmp_path / "a.safetensors", code=3).stderr
    assert "fit-head needs sklearn: pip install 'clipbatch[fit]'" in error
