"""Write pipeline/clipbatch/data/models.csv: size and cost of the image tower of every model that open_clip ships.

    python scripts/list_models.py

Each tower is built without memory for its weights (torch's meta device), and its operations are counted for one
image: `torch.utils.flop_counter`, where a multiply-add is two. Models that cannot be built without a download are
left out and named.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import open_clip
import torch
from open_clip.model import _build_vision_tower
from torch.utils.flop_counter import FlopCounterMode

PACKAGE = Path(__file__).parents[1] / "pipeline" / "clipbatch"


def tower_cost(config: dict) -> tuple[int, float, float]:
    """Input size in pixels, 10**9 operations for one image, and millions of parameters, of an image tower."""
    vision = dict(config["vision_cfg"], timm_model_pretrained=False)
    with torch.device("meta"):
        tower = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False)).eval()
        size = vision.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        with FlopCounterMode(display=False) as counter:  # with gradients: the counter hooks into them
            tower(torch.empty(1, 3, height, width))
    return min(height, width), counter.get_total_flops() / 1e9, sum(p.numel() for p in tower.parameters()) / 1e6


def main() -> None:
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    configs["clipbatch-demo"] = json.loads((PACKAGE / "data" / "demo" / "clipbatch-demo.json").read_text())
    with open(PACKAGE / "data" / "models.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("name", "image_size", "image_gflop", "image_mparams"))
        for name, config in sorted(configs.items()):
            try:
                size, gflop, mparams = tower_cost(config)
            except Exception as error:
                print(f"left out: {name} ({type(error).__name__}: {error})")
                continue
            table.writerow((name, size, f"{gflop:.4g}", f"{mparams:.4g}"))


if __name__ == "__main__":
    main()
