"""The words of --trust, and how findings become an error or lines."""

import numpy as np
import pytest

from gpu_extract import InputError, LabelError
from gpu_extract.checks import TRUST, as_trust, check_slides
from gpu_extract.checks.findings import Finding, conclude, some_ids
from gpu_extract.recipe import Recipe


def test_words_are_given_as_text_or_one_by_one():
    assert as_trust(None) == as_trust("") == as_trust([]) == frozenset()
    assert as_trust("ids") == as_trust(["ids"]) == {"ids"}
    assert as_trust(" ids, binary,") == as_trust(("binary", "ids")) == {"ids", "binary"}
    assert as_trust(TRUST) == set(TRUST)


@pytest.mark.parametrize("given", ["idz", ["ids", "idz"], "all"])
def test_an_unknown_word_is_refused_and_the_known_ones_are_named(given):
    with pytest.raises(InputError, match=r"trust is '\w+'; it must be one or more of ids, binary, planes, placement"):
        as_trust(given)


def test_findings_of_one_kind_are_one_line():
    findings = [Finding("kind", f"a is wrong in {n}", "mend it", "ids", slide=f"s{n}") for n in range(6)]
    assert conclude(findings[:1], frozenset()).warnings == ("a is wrong in 0; mend it",)
    assert conclude(findings[:2], frozenset()).warnings == ("a is wrong in 0 (and alike in 1 more slide: s1); mend it",)
    assert conclude(findings, frozenset()).warnings == (
        "a is wrong in 0 (and alike in 5 more slides: s1, s2, s3, ...); mend it",
    )


def test_the_first_error_is_raised_and_others_may_be_accepted():
    findings = [
        Finding("a", "a may be wrong", "look", "ids"),
        Finding("b", "b is wrong", "mend it", "binary", is_error=True),
        Finding("c", "c is wrong", "mend it", "ids", is_error=True),
    ]
    with pytest.raises(LabelError, match=r'^b is wrong; mend it; --trust binary \(trust="binary"\) accepts it$'):
        conclude(findings, frozenset())
    with pytest.raises(LabelError, match="c is wrong"):
        conclude(findings, as_trust("binary"))
    told = conclude(findings, as_trust("binary,ids"))
    assert told.trusted == ("binary: b is wrong", "ids: c is wrong")
    assert told.warnings == tuple(
        f'{what} (accepted by --trust {word}, trust="{word}")'
        for what, word in (
            ("a may be wrong", "ids"),
            ("b is wrong", "binary"),
            ("c is wrong", "ids"),
        )
    )


def test_examples_of_ids():
    assert some_ids(np.array([7], np.uint64)) == "id 7"
    assert some_ids(np.array([7, 2**64 - 1], np.uint64)) == f"ids 7, {2**64 - 1}"
    assert some_ids(np.arange(9, dtype=np.uint64)) == "ids 0, 1, 2, ..."


def test_slides_without_labels_are_left_to_planning():
    assert check_slides([], [], Recipe()).warnings == ()
