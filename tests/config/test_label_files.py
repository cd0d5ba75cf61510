"""Label files of every format: tags, thresholds, tables and JSON, and what is refused with which remedy."""

import json
from pathlib import Path

import pytest

from clipbatch.config import LabelSettings
from clipbatch.config.label_set import LabelSet
from clipbatch.config.labels import load, remarks
from clipbatch.config.scoring import chance_remark, check_scoring
from clipbatch.errors import InputError


def _load(folder: Path, name: str, content: str, *template: str) -> LabelSet:
    (folder / name).write_text(content)
    return load(LabelSettings(labels=str(folder / name), template=template))


def test_tags_have_two_sides_and_a_threshold_each(tmp_path: Path) -> None:
    labels = _load(
        tmp_path,
        "a.TOML",
        'thresholds = {dog = 0.31}\n[tags]\nperson = ["a person", "nobody"]\ndog = [["a dog", "a puppy"], "no dog"]\n',
    )
    (group,) = labels.groups
    assert group.multiple
    assert group.prompts == [["a person"], ["a dog", "a puppy"]]
    assert group.opposing_prompts == [["nobody"], ["no dog"]]
    assert labels.prompts == [["a person"], ["a dog", "a puppy"], ["nobody"], ["no dog"]]
    assert group.cutoffs == [0.5, 0.31]
    assert labels.sizes == [2]


def test_a_threshold_of_a_label_goes_before_the_default(tmp_path: Path) -> None:
    text = 'labels = ["cat", "dog"]\nmultiple = true\nthreshold = 0.2\nthresholds = {dog = 0.31}\n'
    assert _load(tmp_path, "a.toml", text).groups[0].cutoffs == [0.2, 0.31]
    (single,) = _load(tmp_path, "b.toml", 'labels = ["cat", "dog"]\nthresholds = {dog = 0.31}\n').groups
    assert (single.cutoffs, single.multiple) == ([None, 0.31], False)


def test_what_run_json_records_of_a_label_set_makes_it_again(tmp_path: Path) -> None:
    text = """
[groups.tag]
tags = {person = ["a person", "nobody"]}
[groups.kind]
labels = ["invoice", "letter"]
thresholds = {letter = 0.4}
"""
    labels = _load(tmp_path, "a.toml", text)
    assert LabelSet.from_identity(json.loads(json.dumps(labels.identity()))) == labels
    plain = _load(tmp_path, "a.txt", "cat\ndog\n").identity()
    assert [plain[name] for name in ("thresholds", "multiple", "opposites")] == [None] * 3


@pytest.mark.parametrize("suffix", ["csv", "CSV"])
def test_a_table_has_prompts_thresholds_and_groups(tmp_path: Path, suffix: str) -> None:
    text = 'Label,prompt,threshold,group\ncat,a cat,0.3,pet\ncat,"a cat, asleep",,pet\ndog,,,pet\nindoor,,,scene\n'
    pet, scene = _load(tmp_path, f"a.{suffix}", text).groups
    assert (pet.name, scene.name) == ("pet", "scene")
    assert pet.prompts == [["a cat", "a cat, asleep"], ["a photo of a dog."]]
    assert pet.cutoffs == [0.3, None]
    assert _load(tmp_path, "b.tsv", "label\tprompt\ncat\ta cat\ndog\t\n", "{}!").prompts == [["a cat!"], ["dog!"]]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ('["cat", "dog"]', ["cat", "dog"]),
        ('{"10": "dog", "9": "cat"}', ["cat", "dog"]),
        ('{"n02": "dog", "n01": "cat"}', ["dog", "cat"]),
    ],
)
def test_json_is_a_list_or_names_by_id(tmp_path: Path, content: str, names: list[str]) -> None:
    labels = _load(tmp_path, "a.json", content)
    assert labels.names == names
    assert labels.prompts[0] == [f"a photo of a {names[0]}."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", 'labels = ["cat"]\nthresholds = {cats = 0.3}', "'cats', and there is no such label.*mean cat"),
        ("a.toml", 'labels = ["cat"]\nthresholds = {cat = 3}', "a.toml: 'cat': threshold wants a score from -1 to 1"),
        ("a.toml", 'labels = ["cat"]\nthresholds = 0.3', "thresholds wants a table such as"),
        ("a.toml", 'labels = ["cat"]\nmultiple = 1', "multiple wants true or false"),
        ("a.toml", 'tags = {a = ["x", "y"]}\nmultiple = false', "of tags an image always may have several"),
        ("a.toml", 'tags = {a = ["x", "y"]}\nlabels = ["cat"]', "labels and tags: put each into a"),
        ("a.toml", 'tags = {a = ["x"]}', "tag 'a' wants two prompts, one for yes and one for no"),
        ("a.toml", 'tags = {a = "x"}', "tag 'a' wants two prompts"),
        ("a.toml", 'tags = ["a"]', "tags wants a table"),
        ("a.toml", 'labels = ["a"]\ntreshold = 1', "'treshold' is not known here.*Did you mean threshold"),
        ("a.csv", "cat\ndog\n", "its header has 'cat': the first line names the columns label and"),
        ("a.csv", "label,promt\ncat,x\n", "its header has 'promt'.*Did you mean prompt"),
        ("a.csv", "label,label\ncat,x\n", "its header has 'label'.*each once"),
        ("a.csv", "label\n", "a.csv has no labels: write one a row below the header"),
        ("a.csv", "label,prompt\ncat,x,y\n", "row 2 has 3 cells, and the header has 2"),
        ("a.csv", "label,prompt\n,x\n", "row 2 has no label"),
        ("a.csv", "label\ncat\ncat\n", "row 3: label 'cat' appears twice in its group: remove one"),
        ("a.csv", "label,threshold\ncat,high\n", "row 2: threshold 'high' is not a number from -1 to 1"),
        ("a.csv", "label,threshold,prompt\ncat,0.1,a\ncat,0.2,b\n", "'cat' has another threshold on an earlier row"),
        ("a.csv", "label,group\ncat,pet\ndog,\n", "some rows have no group and others have one"),
        ("a.csv", "label,group\ncat,My Pet\n", "group 'My Pet' cannot begin a column's name"),
        ("a.csv", 'label\n"cat\n', "not a table that can be read.*check its quotes"),
        ("a.json", "{", "a.json is not valid JSON"),
        ("a.json", '{"0": "cat", "0": "dog"}', "ids: label '0' appears twice"),
        ("a.json", '{"0": ["n01", "cat"]}', r"write a list of labels that are texts, or \{id: label\}"),
        ("a.json", '["cat", "cat"]', "label 'cat' appears twice, at 1 and 2"),
        ("a.json", "[]", "a.json has no labels"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place_and_the_remedy(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _load(tmp_path, name, content)


def test_labels_that_differ_in_case_or_spaces_are_said(tmp_path: Path) -> None:
    (said,) = remarks(_load(tmp_path, "a.txt", "Red fox\nred  Fox\ncat\n"))
    assert "'Red fox' and 'red  Fox' differ only in case or spaces" in said
    assert remarks(_load(tmp_path, "b.txt", "red fox\ncat\n")) == []


TAGS, ONE = 'tags = {a = ["x", "y"]}', 'labels = ["cat"]'
SEVERAL = 'labels = ["cat", "dog"]\nmultiple = true\n'


@pytest.mark.parametrize(
    ("text", "score", "has_bias", "refused"),
    [
        (ONE, "auto", False, "1 label.*give two or more"),
        (ONE, "softmax", None, "1 label"),
        (ONE, "auto", True, None),
        (ONE, "auto", None, None),
        (ONE, "sigmoid", True, None),
        (ONE, "cosine", False, None),
        (TAGS, "auto", False, None),
        (TAGS, "cosine", False, "tags, and --score cosine"),
        (SEVERAL, "sigmoid", False, "model was trained with softmax: it has no logit bias.*tags ="),
        (SEVERAL, "cosine", False, "no usual threshold: write threshold"),
        (SEVERAL + "threshold = 0.2", "cosine", False, None),
        (SEVERAL, "auto", True, None),
    ],
)
def test_scores_that_mean_nothing_are_refused(
    tmp_path: Path, text: str, score: str, has_bias: bool | None, refused: str | None
) -> None:
    labels = _load(tmp_path, "a.toml", text)
    if refused is None:
        check_scoring(labels, score, has_bias, "model")
        return
    with pytest.raises(InputError, match=refused):
        check_scoring(labels, score, has_bias, "model")


def test_scores_at_chance_are_said_and_others_are_not(tmp_path: Path) -> None:
    (group,) = _load(tmp_path, "a.txt", "\n".join(f"label {n}" for n in range(10))).groups
    assert "1/10 = 0.100" in (chance_remark(group, "softmax", 0.12) or "")
    assert chance_remark(group, "softmax", 0.5) is None
    assert chance_remark(group, "cosine", 0.12) is None
    (pair,) = _load(tmp_path, "b.txt", "yes\nno\n").groups
    assert chance_remark(pair, "softmax", 0.52)
    assert chance_remark(pair, "softmax", 0.7) is None
