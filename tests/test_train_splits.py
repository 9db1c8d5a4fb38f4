"""Splits: no patient in two parts, every slide tested once, and an error with a remedy where that is impossible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.config import TrainConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.train.labels import class_order
from wsi_pipeline.train.splits import Split, labelled, make_splits
from wsi_pipeline.types import SlideRow


def row(slide_id: str, patient: str, label: str | None, split: str | None = None) -> SlideRow:
    return SlideRow(slide_id, Path(f"{slide_id}.svs"), patient, label, split)


def cohort(patients_per_class: int, slides_per_patient: int = 1, classes: Sequence[str] = "ab") -> list[SlideRow]:
    return [
        row(f"{c}{p}_{s}", f"{c}{p}", c)
        for c in classes
        for p in range(patients_per_class)
        for s in range(slides_per_patient)
    ]


def parts(split: Split) -> dict[str, tuple[str, ...]]:
    return {"train": split.train, "val": split.val, "test": split.test}


@st.composite
def cohorts(draw: st.DrawFn) -> list[SlideRow]:
    """Two or three classes of 4 to 9 patients with 1 to 4 slides each; some patients have a second label."""
    rows = []
    for label in draw(st.sampled_from(["ab", "abc"])):
        for p in range(draw(st.integers(4, 9))):
            for s in range(draw(st.integers(1, 4))):
                other = s == 3 and draw(st.booleans())
                rows.append(row(f"{label}{p}_{s}", f"{label}{p}", "b" if other else label))
    return draw(st.permutations(rows))


@settings(max_examples=40, deadline=None)
@given(cohorts(), st.integers(2, 4), st.floats(0.05, 0.9), st.integers(-5, 5))
def test_no_patient_is_in_two_parts_and_every_slide_is_tested_once(
    rows: list[SlideRow], folds: int, val_fraction: float, seed: int
) -> None:
    patient = {r.slide_id: r.patient_id for r in rows}
    label = {r.slide_id: r.label for r in rows}
    try:
        splits = make_splits(rows, TrainConfig(folds=folds, val_fraction=val_fraction), seed)
    except ConfigError:  # patients of two labels can leave a fold's training part without a class
        several = len({(r.patient_id, r.label) for r in rows}) > len(set(patient.values()))
        assert several
        return
    assert [s.fold for s in splits] == list(range(folds))
    assert sorted(slide_id for s in splits for slide_id in s.test) == sorted(patient)
    for split in splits:
        assert sorted(split.train + split.val + split.test) == sorted(patient)
        patients = [{patient[s] for s in ids} for ids in parts(split).values()]
        assert sum(map(len, patients)) == len(set.union(*patients))
        assert {label[s] for s in split.train} == set(label.values())
        assert split.val


def test_folds_and_validation_are_stratified() -> None:
    rows = cohort(10)
    for split in make_splits(rows, TrainConfig(folds=5, val_fraction=0.25), seed=0):
        count = {
            name: (sum(s[0] == "a" for s in ids), sum(s[0] == "b" for s in ids)) for name, ids in parts(split).items()
        }
        assert count == {"train": (6, 6), "val": (2, 2), "test": (2, 2)}


def test_every_class_with_several_patients_is_in_validation() -> None:
    rows = cohort(3) + [row(f"a_more{i}", f"a_more{i}", "a") for i in range(30)]
    for split in make_splits(rows, TrainConfig(folds=3, val_fraction=0.01), seed=0):
        assert {s[0] for s in split.val} == {"a", "b"}


def test_the_split_depends_on_the_seed_but_not_on_the_order_of_the_manifest() -> None:
    rows, config = cohort(8), TrainConfig(folds=4)
    assert make_splits(rows, config, 1) == make_splits(rows[::-1], config, 1)
    assert make_splits(rows, config, 1) != make_splits(rows, config, 2)


def test_splits_of_the_manifest_are_used_unchanged() -> None:
    given_parts = {"train": "a1 b1", "val": "a2 b2", "test": "a3 b3"}
    rows = [row(s, s, s[0], split) for split, ids in given_parts.items() for s in ids.split()]
    (split,) = make_splits(rows, TrainConfig(), seed=0)
    assert split == Split(0, ("a1", "b1"), ("a2", "b2"), ("a3", "b3"))


def test_validation_is_taken_from_train_where_the_manifest_marks_none() -> None:
    rows = [row(r.slide_id, r.patient_id, r.label, "train") for r in cohort(5, 2)] + [row("t", "t", "a", "test")]
    (split,) = make_splits(rows, TrainConfig(val_fraction=0.2), seed=3)
    assert split.test == ("t",)
    assert [s[0] for s in split.val] == ["a", "a", "b", "b"]  # one patient of two slides each
    assert len(split.train) == 16


def test_a_patient_may_have_slides_of_two_labels() -> None:
    rows = [*cohort(4), row("both_1", "both", "a"), row("both_2", "both", "b")]
    for split in make_splits(rows, TrainConfig(folds=2), seed=0):
        assert sum({"both_1", "both_2"} <= set(ids) for ids in parts(split).values()) == 1


A, B = row("a1", "a1", "a", "train"), row("b1", "b1", "b", "train")
REFUSED = [
    (cohort(4), r"class 'a' has 4 patient\(s\), too few for 5 folds; set train\.folds=4"),
    (cohort(1), r"class 'a' has 1 patient\(s\).*label slides of more patients"),
    ([row("x1", "x", "a"), row("x2", "x", "a"), *cohort(9, classes="b")], r"class 'a' has 1 patient\(s\)"),
    ([A, B, row("c", "c", "a")], "slide 'c' has a label but no split"),
    ([A, B, row("a2", "a1", "a", "test")], "patient 'a1' has slides in train and in test"),
    ([A, row("b2", "b2", "b", "test"), row("v", "v", "a", "val")], "no training slide of a fold is labelled 'b'"),
    ([A, B], "no patient is left for validation; give more slides split train"),
]


@pytest.mark.parametrize(("rows", "message"), REFUSED)
def test_slides_that_cannot_be_split_give_an_error_of_one_line(rows: list[SlideRow], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_splits(rows, TrainConfig(), seed=0)
    assert "\n" not in str(error.value)


def test_two_patients_per_class_in_two_folds_leave_none_for_validation() -> None:
    with pytest.raises(ConfigError, match=r"no patient is left for validation; set fewer train\.folds, or label"):
        make_splits(cohort(2), TrainConfig(folds=2), seed=0)


def test_unlabelled_slides_are_left_out() -> None:
    rows = [row("s2", "p", "a"), row("s1", "p", None), row("s0", "p", None, "test")]
    assert [r.slide_id for r in labelled(rows)] == ["s2"]


def test_a_training_slide_needs_a_label() -> None:
    with pytest.raises(ConfigError, match="slide 's1' has split train but no label"):
        labelled([row("s1", "p", None, "train"), row("s2", "p", "a", "test")])


def test_without_labels_there_is_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match=r"no labelled slide to train on; fill .* or give predict\.model"):
        labelled([row("s1", "p", None)])


def test_classes_are_the_sorted_labels_or_those_of_the_config() -> None:
    rows = [row("1", "1", "tumour"), row("2", "2", "normal")]
    assert class_order(rows, None) == ("normal", "tumour")
    assert class_order(rows, ("tumour", "normal")) == ("tumour", "normal")
    assert class_order(rows, ("tumour", "normal", "rare")) == ("tumour", "normal", "rare")


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ("ab", ("a", "c"), r"slide 'b1' has label 'b', which is not in train.classes \(a, c\)"),
        ("aa", None, "training needs two classes, but every label is 'a'"),
        ("ab", ("a", "b", "a"), "train.classes lists a class twice"),
        ("ab", ("a", "b", "a;b"), "class 'a;b' contains ';'"),
    ],
)
def test_labels_that_do_not_fit_the_classes_are_rejected(
    labels: str, classes: tuple[str, ...] | None, message: str
) -> None:
    rows = [row(f"{label}{i}", f"p{i}", label) for i, label in enumerate(labels)]
    with pytest.raises(ConfigError, match=message):
        class_order(rows, classes)
