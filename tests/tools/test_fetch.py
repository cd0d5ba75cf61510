"""`clipbatch fetch`, from a hub on this machine that stops before the model is used."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipbatch.config import models
from tests.conftest import Cli, rows
from tests.stages.test_families import write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves folders as the Hugging Face hub does: /ORG/NAME/resolve/REVISION/FILE."""

    def __init__(self, root: Path) -> None:
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                asked.append(self.path)
                org, name, _, _, *rest = [*self.path.split("?")[0].strip("/").split("/"), "", "", ""]
                path = root.joinpath(org, name, *rest)
                if not path.is_file():
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = path.read_bytes()
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{len(body)}-{path.name}"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Has one model, `acme/tiny`, whose tokenizer lies beside its weights, as that of SigLIP does."""
    folder = tmp_path / "hub" / "acme" / "tiny"
    folder.mkdir(parents=True)
    write_model(folder, "ViT-B-16-SigLIP")
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "acme/tiny"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    hub = Hub(tmp_path / "hub")
    yield hub
    hub.close()


def test_a_fetched_model_is_used_without_a_hub(cli: Cli, hub: Hub, photos: Path, tmp_path: Path) -> None:
    online = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    said = cli("fetch", "hf-hub:acme/tiny", env=online).stdout
    weights, use, _, offline = said.splitlines()
    cache = tmp_path / "home" / "hub"
    assert weights.startswith(f"{cache}/models--acme--tiny/snapshots/{COMMIT}/open_clip_model.safetensors: ")
    assert use == "use it here: clipbatch run ... --model hf-hub:acme/tiny"
    assert offline == "  HF_HUB_CACHE=FOLDER HF_HUB_OFFLINE=1 clipbatch run ... --model hf-hub:acme/tiny"
    assert any(path.endswith("/tokenizer.json") for path in hub.asked)
    before = len(hub.asked)
    again = json.loads(cli("fetch", "hf-hub:acme/tiny", "--json", env=online).stdout)
    assert again["cache"] == str(cache)
    assert len(hub.asked) == before  # all of it is here
    hub.close()
    shutil.copytree(cache, tmp_path / "copied", symlinks=True)
    shutil.rmtree(cache)
    elsewhere = {"HF_HUB_CACHE": str(tmp_path / "copied"), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url}
    settings = ("--model", "hf-hub:acme/tiny", "--labels", "cat,dog", "--limit", 2, "--out", tmp_path / "out")
    cli("run", photos, *settings, env=elsewhere)
    assert rows(tmp_path / "out")["status"].to_pylist() == ["ok", "ok"]


def test_a_model_file_needs_no_download_and_an_unreachable_model_is_refused(cli: Cli, tmp_path: Path) -> None:
    made = json.loads(cli("fetch", "clipbatch-demo", "--json").stdout)
    assert (made["weights"], made["cache"]) == (models.weights_file("embedded"), None)
    assert made["bytes"] == Path(made["weights"]).stat().st_size
    nowhere = {"HF_HOME": str(tmp_path)}
    error = cli("fetch", "ViT-B-32", code=3, env=nowhere).stderr
    assert "not cached here and cannot be downloaded" in error
    assert "Did you mean ViT-B-32" in cli("fetch", "ViT-B32", code=3).stderr
