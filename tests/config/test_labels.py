"""Labels and prompts: every way to give them, the shipped sets, and what is refused with which remedy."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from clipbatch.config import LabelSettings
from clipbatch.config.labels import LabelSet, load, shipped
from clipbatch.errors import InputError

BEE_AND_CAT = '[labels]\nbee = ["a bee", "a honeybee"]\n"black cat" = "a black cat"\n'


GROUPS = """
[groups.kind]
labels = ["invoice", "letter"]
templates = ["a scan of a {}."]
threshold = 0.5
[groups.safe]
labels = {safe = ["a harmless page"], unsafe = ["a weapon", "a wound"]}
[groups.scene]
labels = ["indoor", "letter"]
"""


def _load(labels: str | os.PathLike[str], *template: str) -> LabelSet:
    return load(LabelSettings(labels=str(labels), template=template))


def _file(folder: Path, content: bytes | str, name: str = "labels.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\nred fox\n",
        "cat\ndog\nred fox",
        "cat\r\ndog\r\nred fox\r\n",
        "\ufeffcat\ndog\nred fox\n",
        "# pets\n\n  cat  \n#bird\ndog\n\t\nred fox\n\n",
        "\ufeff# pets\ncat\ndog\nred fox",
    ],
    ids=["plain", "no newline at the end", "CRLF", "BOM", "comments and blanks", "BOM before a comment"],
)
def test_a_text_file_has_one_label_a_line(tmp_path: Path, content: str) -> None:
    found = _load(_file(tmp_path, content))
    assert found.names == ["cat", "dog", "red fox"]
    assert found.prompts == [["a photo of a cat."], ["a photo of a dog."], ["a photo of a red fox."]]


def test_labels_may_be_of_any_script_and_keep_their_order(tmp_path: Path) -> None:
    names = ["œuf", "猫", "🐝 bee", "a {} b", "Zebra", "ant"]
    assert _load(_file(tmp_path, "\n".join(names))).names == names


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("cat,dog", ["cat", "dog"]),
        (" cat , red fox ,, dog,", ["cat", "red fox", "dog"]),
        pytest.param(
            ",".join(f"label {n}" for n in range(200)),
            [f"label {n}" for n in range(200)],
            id="longer than a file name may be",
        ),
    ],
)
def test_a_comma_separated_list_is_a_label_set(given: str, names: list[str]) -> None:
    assert _load(given).names == names


def test_a_file_wins_over_a_list_of_the_same_name(tmp_path: Path) -> None:
    assert _load(_file(tmp_path, "one\ntwo\n", "cat,dog")).names == ["one", "two"]


def test_a_toml_file_has_several_prompts_for_a_label_and_no_template_of_ours(tmp_path: Path) -> None:
    found = _load(_file(tmp_path, BEE_AND_CAT, "labels.toml"))
    assert found.names == ["bee", "black cat"]
    assert found.prompts == [["a bee", "a honeybee"], ["a black cat"]]


def test_a_label_has_all_its_phrases_in_all_templates(tmp_path: Path) -> None:
    own = 'templates = ["see {}.", "{} {}"]\n' + BEE_AND_CAT
    found = _load(_file(tmp_path, own, "labels.toml"))
    assert found.prompts == [
        ["see a bee.", "a bee a bee", "see a honeybee.", "a honeybee a honeybee"],
        ["see a black cat.", "a black cat a black cat"],
    ]
    given = _load(_file(tmp_path, own, "labels.toml"), "no {}")
    assert given.prompts == [["no a bee", "no a honeybee"], ["no a black cat"]]


def test_a_toml_file_may_list_its_labels_and_say_which_score_is_too_low(tmp_path: Path) -> None:
    (group,) = _load(_file(tmp_path, 'labels = ["cat", " dog "]\nthreshold = 1', "labels.toml")).groups
    assert (group.name, group.names, group.threshold) == ("", ["cat", "dog"], 1.0)
    assert group.prompts == [["a photo of a cat."], ["a photo of a dog."]]


def test_groups_have_their_own_labels_templates_and_thresholds(tmp_path: Path) -> None:
    found = _load(_file(tmp_path, GROUPS, "labels.toml"))
    kind, safe, scene = found.groups
    assert [(g.name, g.names, g.threshold) for g in found.groups] == [
        ("kind", ["invoice", "letter"], 0.5),
        ("safe", ["safe", "unsafe"], None),
        ("scene", ["indoor", "letter"], None),
    ]
    assert kind.prompts == [["a scan of a invoice."], ["a scan of a letter."]]
    assert safe.prompts == [["a harmless page"], ["a weapon", "a wound"]]
    assert scene.prompts == [["a photo of a indoor."], ["a photo of a letter."]]
    assert (found.names, found.sizes) == (["invoice", "letter", "safe", "unsafe", "indoor", "letter"], [2, 2, 2])
    assert found.prompts == [*kind.prompts, *safe.prompts, *scene.prompts]
    given = _load(_file(tmp_path, GROUPS, "labels.toml"), "no {}")
    assert given.prompts[0] == ["no invoice"]
    assert given.groups[0].threshold == 0.5


@pytest.mark.parametrize("content", [GROUPS, BEE_AND_CAT, "threshold = 0.25\n" + BEE_AND_CAT])
def test_a_label_set_is_made_again_from_its_identity(tmp_path: Path, content: str) -> None:
    found = _load(_file(tmp_path, content, "labels.toml"))
    assert LabelSet.from_identity(json.loads(json.dumps(found.identity(), sort_keys=True))) == found


def test_a_toml_file_from_an_editor_that_writes_a_bom_is_read(tmp_path: Path) -> None:
    assert _load(_file(tmp_path, "\ufeff" + BEE_AND_CAT, "labels.toml")).names == ["bee", "black cat"]


@pytest.mark.parametrize(
    ("name", "count"), [("cifar10", 10), ("imagenet1k", 1000), ("documents-27", 27), ("documents-10", 10)]
)
def test_a_shipped_set_is_there_by_name(name: str, count: int) -> None:
    found = _load(name)
    assert name in shipped()
    assert len(set(found.names)) == len(found.names) == count
    assert all(prompt.strip() and "{}" not in prompt for prompts in found.prompts for prompt in prompts)


def test_the_shipped_imagenet_labels_are_open_clips_own_in_their_order() -> None:
    from open_clip import IMAGENET_CLASSNAMES

    ours = _load("imagenet1k").names
    assert len(set(IMAGENET_CLASSNAMES)) == 998  # two of their names stand twice; ours say which is which
    assert {a: b for a, b in zip(ours, IMAGENET_CLASSNAMES, strict=True) if a != b} == {
        "missile (projectile)": "missile",
        "sunglasses (dark glasses)": "sunglasses",
    }


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [("openai", "OPENAI_IMAGENET_TEMPLATES", 80), ("simple", "SIMPLE_IMAGENET_TEMPLATES", 7)],
)
def test_a_template_set_gives_the_very_prompts_that_open_clip_makes(name: str, source: str, count: int) -> None:
    import open_clip

    theirs = [template("red fox") for template in getattr(open_clip, source)]
    assert len(theirs) == count
    assert _load("red fox,dog", name).prompts[0] == theirs


def test_templates_can_be_given_and_replace_the_default() -> None:
    assert _load("cat,dog", "a {}!", "{} and {}").prompts[1] == ["a dog!", "dog and dog"]


def test_sets_of_templates_go_with_others() -> None:
    assert _load("cat,dog", "{}!", "simple").prompts[0] == ["cat!", *_load("cat,dog", "simple").prompts[0]]


REFUSED: list[tuple[str, bytes | str, str]] = [
    ("a.txt", "cat\n\n# x\ndog\ncat\n", "a.txt: label 'cat' appears twice, at 1 and 5: remove one"),
    ("a.txt", "cat\ndog\n dog \ncat\n", "label 'dog' appears twice, at 2 and 3"),
    ("a.txt", "", "a.txt has no labels: write one a line"),
    ("a.txt", "\n# only comments\n  \n", "a.txt has no labels"),
    ("a.txt", "café\nthé\n".encode("latin-1"), "a.txt is not a text file in UTF-8"),
    ("a.txt", "cat\ndog\n".encode("utf-16"), "a.txt is not a text file in UTF-8"),
    ("a.txt", b"cat\0dog\n", "a.txt is not a text file in UTF-8"),
    ("a.toml", "[labels\n", "a.toml is not valid TOML: .*line 1"),
    ("a.toml", "", r"a.toml has no labels: write a table \[labels\]"),
    ("a.toml", "[labels]\n", "a.toml has no labels"),
    ("a.toml", 'labels = "cat"', "a.toml has no labels"),
    ("a.toml", 'labels = ["cat", "dog", "cat"]', "a.toml: label 'cat' appears twice, at 1 and 3"),
    ("a.toml", 'labels = ["cat", 7]', r"a.toml: labels wants a list of texts, not \['cat', 7\]"),
    ("a.toml", '[labels]\ncat = "a"\ncat = "b"\n', "a.toml is not valid TOML"),
    ("a.toml", '[labels]\ncat = "a"\ndog = []\n', r"label 'dog' wants a text or a list of texts, not \[\]"),
    ("a.toml", '[labels]\ncat = "a"\ndog = ["b", " "]\n', "label 'dog' wants a text or a list of texts"),
    ("a.toml", '[labels]\ncat = "a"\ndog = 7\n', "label 'dog' wants a text or a list of texts, not 7"),
    ("a.toml", 'templates = "a {}"\n' + BEE_AND_CAT, "templates wants a list of texts, not 'a {}'"),
    ("a.toml", 'templates = ["a photo"]\n' + BEE_AND_CAT, "template 'a photo' has no {} for the label"),
    (
        "a.toml",
        'prompts = ["{}"]\n' + BEE_AND_CAT,
        r"'prompts' is not known here: use templates, threshold and \[labels\]",
    ),
    ("a.toml", "threshold = true\n" + BEE_AND_CAT, "a.toml: threshold wants a score from -1 to 1, not True"),
    ("a.toml", "threshold = 50\n" + BEE_AND_CAT, "threshold wants a score from -1 to 1, not 50"),
    ("a.toml", "threshold = nan\n" + BEE_AND_CAT, "threshold wants a score from -1 to 1, not nan"),
    ("a.toml", "groups = []", r"a.toml: groups wants tables \[groups.NAME\]"),
    ("a.toml", "[groups]\nkind = 1", r"groups wants tables \[groups.NAME\]"),
    ("a.toml", "threshold = 0.5\n" + GROUPS, r"a.toml: 'threshold' stands beside \[groups\]: put it into each"),
    ("a.toml", "[groups.Kind]\nlabels = ['a', 'b']", "group 'Kind' cannot begin a column's name: use a to z first"),
    ("a.toml", "[groups.'a b']\nlabels = ['a', 'b']", "group 'a b' cannot begin a column's name"),
    ("a.toml", "[groups.kind]\nthreshold = 0.5", r"group 'kind' has no labels: write a table \[groups.kind.labels\]"),
    (
        "a.toml",
        "[groups.kind]\nlabel = 1\nlabels = ['a', 'b']",
        "group 'kind': 'label' is not known here: use templates",
    ),
    ("a.toml", "[groups.kind]\nlabels = {a = 'x', b = 7}", "group 'kind': label 'b' wants a text or a list of texts"),
    ("a.toml", "[groups.kind]\nlabels = ['a', 'b']\ntemplates = []", "group 'kind': templates wants a list of texts"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_bad_label_file_is_refused_with_its_name_and_the_remedy(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    path = _file(tmp_path, content, name)
    with pytest.raises(InputError, match=message) as caught:
        _load(path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_an_image_given_as_label_file_is_refused_as_no_text(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cat.img"
    Image.new("RGB", (8, 8), "red").save(path, kind)
    with pytest.raises(InputError, match=r"cat.img is not a text file in UTF-8"):
        _load(path)


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ("", (), "no labels: give --labels FILE.*cifar10"),
        ("cat,dog,cat", (), "--labels: label 'cat' appears twice, at 1 and 3"),
        (" , ,", (), "has no labels"),
        ("cat", (), "no such file, no shipped set of that name .*not a comma-separated list"),
        ("nothere.txt", (), "'nothere.txt': there is no such file"),
        ("cifra10", (), "Did you mean cifar10"),
        ("imagenet", (), "Did you mean imagenet1k"),
        ("document-10", (), "Did you mean documents-10"),
        ("cat,dog", ("a photo",), "template 'a photo' has no {} for the label: write it as 'a photo of a {}.'"),
        ("cat,dog", ("openia",), "'openia' has no {} for the label.*Did you mean openai"),
        ("cat,dog", ("",), "template '' has no {}"),
    ],
)
def test_bad_labels_or_templates_are_refused_with_what_is_near(
    labels: str, template: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _load(labels, *template)


def test_a_folder_given_as_label_file_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: give a text or TOML file"):
        _load(tmp_path)
