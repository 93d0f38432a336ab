from __future__ import annotations

import pytest

from thinwire.errors import LabelError
from thinwire.labels import (
    MAX_LABELS,
    fill_templates,
    parse_labels,
    read_labels,
    resolve_templates,
    spoken,
    validate_labels,
)
from thinwire.prompts import PROMPT_SETS


def test_labels_are_stripped_and_kept_once_in_order():
    assert parse_labels(" tabby cat,dog,, cat ,dog\nbird") == ("tabby cat", "dog", "cat", "bird")
    assert validate_labels(["Zug, alt", "Straße", "犬"]) == ("Zug, alt", "Straße", "犬")


@pytest.mark.parametrize(
    "labels", [[], ["", "  "], "cat", [3], ["a\0b"], ["x" * 401], [f"l{i}" for i in range(MAX_LABELS + 1)]]
)
def test_bad_labels(labels):
    with pytest.raises(LabelError) as caught:
        validate_labels(labels)
    assert caught.value.reason == "BAD_LABELS"


def test_an_error_shows_the_right_form():
    with pytest.raises(LabelError, match='--labels "cat,dog"'):
        parse_labels(" , ")


def test_label_files(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffcat\r\ndog, small\n\ncat\n", encoding="utf-8")
    assert read_labels(path) == ("cat", "dog, small")
    path.write_bytes(b"caf\xe9")
    with pytest.raises(LabelError, match=r"labels\.txt.*UTF-8"):
        read_labels(path)
    path.write_text("\n")
    with pytest.raises(LabelError, match=r"labels\.txt: no labels"):
        read_labels(path)
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "none.txt")


def test_prompt_sets_have_their_sizes_and_hold_one_place_each():
    for name, templates in PROMPT_SETS.items():
        assert len(templates) == len(set(templates)) == int(name)
        assert all(template.count("{}") == 1 for template in templates)
        assert resolve_templates(name) == templates
    assert resolve_templates() == PROMPT_SETS["7"]


def test_own_templates():
    assert resolve_templates("80", ["a sketch of {}"]) == ("a sketch of {}",)
    for bad in (["no place"], ["{} and {}"], ["{0}"], [5], ["{}"] * 201, ["{}" + "x" * 400], ["{}\n"]):
        with pytest.raises(LabelError):
            resolve_templates("", bad)
    with pytest.raises(LabelError, match="1, 7, 80"):
        resolve_templates("81")


def test_braces_in_labels_mean_nothing():
    assert fill_templates("{0.__class__} {}", ["a {}."]) == ["a {0.__class__} {}."]


@pytest.mark.parametrize(
    "label", ["rock 'n' roll", "'n'", '"', '""', "_", "“", '"a" or "b"', "it's", "dogs'", "5' 10\""]
)
def test_what_is_no_quoted_label_is_spoken_as_it_is(label):
    assert spoken(label) == label if label != "'n'" else spoken(label) == "n"


@pytest.mark.parametrize(
    "quoted", ['"{}"', "'{}'", "`{}`", "“{}”", "‘{}’", "„{}“", "«{}»", "« {} »", "“'{}'”", '"“{}”"']
)
def test_quotation_marks_and_underscores_are_not_spoken(quoted):
    for label in ("red_panda", "red  panda"):
        assert spoken(quoted.format(label)) == "red panda"
        assert fill_templates(quoted.format(label), ["a {}."]) == ["a red panda."]
