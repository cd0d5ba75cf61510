"""What is nested too deep is refused with its line, before a parser that calls itself for each level sees it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest

from clipbatch.config.nesting import MAX_DEPTH, NestingError, check_depth, check_json, check_toml, parse_json
from tests.conftest import DEMO, Cli
from tests.support.listing import carried, list_inputs, refused, write


def nested(rng: random.Random, depth: int) -> Any:
    """A value of `depth` levels. Its keys and strings contain brackets, quotes and commas."""
    text = "".join(rng.choice('[]{}"\\ü\n,:x') for _ in range(rng.randrange(9)))
    value: Any = text
    for _ in range(depth):
        value = {text: value, "z": [text]} if rng.random() < 0.5 else [text, value, text]
    return value


def depth_of(value: Any) -> int:
    """Levels of `value`, counted by the definition."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def test_the_depth_of_json_is_exact_whatever_its_strings_hold() -> None:
    rng, seen = random.Random(5), set[bool]()
    for _ in range(400):
        value = nested(rng, rng.randrange(MAX_DEPTH - 3, MAX_DEPTH + 3))
        deep = depth_of(value) > MAX_DEPTH
        seen.add(deep)
        before = [nested(rng, rng.randrange(4)) for _ in range(3)]
        lines = "\n".join(json.dumps(one, ensure_ascii=rng.random() < 0.5) for one in (*before, value, 1)).encode()
        if not deep:
            check_json(lines)
            check_depth(value)
            assert parse_json(json.dumps(value)) == value
            continue
        with pytest.raises(NestingError, match="line 4 is nested more than 100 levels deep"):
            check_json(lines)
        with pytest.raises(NestingError):
            check_depth([value])
    assert seen == {True, False}


def test_levels_are_counted_across_lines_that_are_not_whole_values() -> None:
    with pytest.raises(NestingError, match="line 51"):
        check_json(b'{"a": [1,\n' * 50 + b"{" * 90)  # two levels a line

    # a text without an end hides what follows it from the parser as well
    check_json(b'{"a": "' + b"[" * 10_000)


@pytest.mark.parametrize("levels", [10_000, 1_000_000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_a_manifest_of_deep_json_is_refused_with_its_line(cli: Cli, tmp_path: Path, levels: int, pair: str) -> None:
    begin = "[" if pair == "[]" else '{"a":'
    deep = begin * levels + "1" + pair[1] * levels
    path = write(tmp_path / "m.jsonl", '{"uri": "x.jpg"}\n\n{"uri": "y.jpg", "more": ' + deep + "}\n")
    said = cli("plan", path, *DEMO, "--out", tmp_path / "run", code=3).stderr
    assert said == f"clipbatch: line 3 of {path} is nested more than 100 levels deep: flatten it\n"
    assert not (tmp_path / "run").exists()


def test_a_deep_line_far_into_a_manifest_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"uri": f"{number}.jpg", "text": "[{" * 60}) for number in range(100_000)]  # several pieces
    path = write(tmp_path / "m.jsonl", "\n".join(lines))
    assert list_inputs(path).num_rows == len(lines)
    lines[77_776] = '{"uri": ' + "[" * 101
    assert f"line 77777 of {path} is nested" in refused(write(path, "\n".join(lines)))


def test_nested_json_is_copied_to_the_output_as_deep_as_parquet_can_hold_it(tmp_path: Path) -> None:
    for levels in (10, 45):
        value: Any = 7
        for _ in range(levels):
            value = [value]
        path = write(tmp_path / "m.jsonl", json.dumps({"uri": "x.jpg", "deep": value}))
        assert carried(list_inputs(path))["deep"].to_pylist() == [value]
    kind = pa.int32()
    for _ in range(50):  # two levels each in a Parquet file, whose readers go no deeper than 100
        kind = pa.list_(kind)
    feather.write_feather(pa.table({"uri": ["x.jpg"], "deep": pa.nulls(1, kind)}), tmp_path / "m.feather")
    assert "column 'deep' of" in (said := refused(tmp_path / "m.feather"))
    assert said.endswith("which Parquet cannot hold: leave it out with --columns")
    assert list_inputs(tmp_path / "m.feather", columns=()).num_rows == 1


DEEP = {
    "list": "# [[[ { 'a\n\nlabels = " + "[" * 5000 + "]" * 5000,
    "table": "labels = ''' [\n'''\nx = " + "{a = " * 5000 + "1" + "}" * 5000,
    "key": "\n\n[labels]\n" + ".".join("a" * 5000) + " = 'x'",
    "header": "\n\n[" + ".".join(["labels"] * 5000) + "]\na = 'x'",
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_toml_is_refused_with_its_line(warm: Cli, photos: Path, tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "deep.toml", DEEP[kind])
    line = 4 if kind == "key" else 3
    for option in ("--labels", "--config"):
        command = ("plan", photos, *DEMO, option, path, "--out", tmp_path / "run")
        said = warm(*command, code=3).stderr
        assert said.count("\n") == 1
        assert f"{path} is not" in said
        assert f"line {line} is nested more than 100 levels deep" in said


def test_toml_whose_tables_together_are_too_deep_is_refused(warm: Cli, tmp_path: Path) -> None:
    half = ".".join("a" * 60)
    path = write(tmp_path / "deep.toml", f"[labels.{half}]\n{half} = 'x'")
    assert "it is nested more than 100 levels deep" in warm("labels", path, code=3).stderr
    stray = write(tmp_path / "stray.toml", 'labels = ["""a"""", ' + "[" * 5000)  # a quote more than it looks like
    assert "nested more than 100 levels deep" in warm("labels", stray, code=3).stderr


def test_brackets_in_toml_strings_and_dots_in_numbers_are_not_levels() -> None:
    rng = np.random.default_rng(3)
    numbers = ", ".join(f"{number:.3f}" for number in rng.random(500))
    check_toml(
        f'a = [{numbers}]\nb = \'{"[" * 500}\'\nc = """{"{" * 500}\n\\""""\n# {"[" * 500}\nd = \'a.{"b." * 500}\''
    )


def test_a_deep_model_config_is_refused(warm: Cli, photos: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "model.json", '{"embed_dim": ' + "[" * 5000 + "]" * 5000 + "}")
    command = ("plan", photos, "--labels", "cat,dog", "--model", path, "--out", tmp_path / "run")
    said = warm(*command, code=3).stderr
    assert f"--model {path} is not one of open_clip's model configs: line 1 is nested" in said
    write(path, "[")
    assert "is not one of open_clip's model configs: Expecting value" in warm(*command, code=3).stderr
