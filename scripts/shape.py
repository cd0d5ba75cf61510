"""Print the shape of the package as a table: how many files and entries there are, and whether each idea stands once.

    python scripts/shape.py

The numbers are counted from the source as it is, so that the shape can be watched from one change to the next.
"""

from __future__ import annotations

import ast
import re
import statistics
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline" / "clipbatch"
SHORT = 40


def sources() -> dict[Path, str]:
    """The text of every module of the package, by path."""
    return {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def contracts() -> tuple[list[str], list[str]]:
    """The layers of the first import contract, and the packages of the second, which need no torch."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers, torch_free = settings["tool"]["importlinter"]["contracts"]
    return layers["layers"], torch_free["source_modules"]


def upward_imports(texts: dict[Path, str], layers: list[str]) -> list[str]:
    """Imports of a package from a package that lies above it or beside it, as `importer -> imported`."""
    level = {name: at for at, names in enumerate(layers) for name in names.replace(" ", "").split("|")}
    found = []
    for path, text in texts.items():
        importer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(text)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                imported = module.split(".")[1] if module.startswith("clipbatch.") else importer
                if imported == importer or not {imported, importer} <= level.keys():
                    continue
                if level[imported] <= level[importer]:
                    found.append(f"{path.relative_to(PACKAGE)} -> {module}")
    return found


def matches(texts: dict[Path, str], pattern: str) -> int:
    """How often `pattern` occurs in the package."""
    return sum(len(re.findall(pattern, text)) for text in texts.values())


def rows() -> list[tuple[str, str]]:
    """What is counted, and the figure."""
    texts, (layers, torch_free) = sources(), contracts()
    lengths = {path: text.count("\n") for path, text in texts.items()}
    code = {path: lines for path, lines in lengths.items() if path.name not in ("__init__.py", "__main__.py")}
    declared = [path for path, text in texts.items() if re.search(r"^    \w+: .* = setting\(", text, re.MULTILINE)]
    entries = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    names = sum(len(layer.split("|")) for layer in layers)
    return [
        ("entries at the top of the package, data/ aside", str(len(entries))),
        ("modules", str(len(texts))),
        (f"modules with code and fewer than {SHORT} lines", str(sum(lines < SHORT for lines in code.values()))),
        ("lines of a module, median", f"{statistics.median(lengths.values()):.0f}"),
        ("lines of a module, most", f"{max(lengths.values())}"),
        ("lines", f"{sum(lengths.values()):,}"),
        ("names in the contract of layers", str(names)),
        ("names in the contract of what needs no torch", str(len(torch_free))),
        ("modules that declare settings", ", ".join(str(path.relative_to(PACKAGE)) for path in declared)),
        ("places that start a process of this package", str(matches(texts, r'sys\.executable, "-m"'))),
        ("loops over what the stages write", str(matches(texts, r"pipeline\.label\("))),
        ("lines with dict[str, Any]", str(matches(texts, r"dict\[str, Any\]"))),
        ("imports that run upwards", str(len(upward_imports(texts, layers)))),
    ]


def main() -> None:
    width = max(len(name) for name, _ in rows())
    for name, figure in rows():
        print(f"{name.ljust(width)}  {figure}")


if __name__ == "__main__":
    main()
