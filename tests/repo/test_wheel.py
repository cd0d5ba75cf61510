"""The wheel works outside of the checkout."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_built_wheel_runs_the_demo_from_a_clean_folder(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("clipbatch-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import clipbatch; print(clipbatch.__file__)"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(site))
    made = subprocess.run(
        [sys.executable, site / "bin" / "clipbatch", "demo"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "36 images: 34 ok" in made.stdout
    report = [sys.executable, site / "bin" / "clipbatch", "report", "clipbatch-demo"]
    subprocess.run(report, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "clipbatch-demo" / "report.html").stat().st_size > 50_000
    assert len(list((tmp_path / "clipbatch-demo" / "parts").glob("*.parquet"))) == 1
