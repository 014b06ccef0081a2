"""The page of conclusions follows the decisions of the claims."""

import claims
import conclusions
import pytest
from trends.rule import Decision
from trends.select import Finding


def decided(**verdicts):
    """All claims pass but those whose text begins so: {beginning: verdict}."""
    found = []
    for text in claims.CLAIMS:
        kind = next((v for start, v in verdicts.items() if text.startswith(start)), "pass")
        found.append((text, Finding("MLP", Decision(kind, "< 0", "+1 ± 1 (3)", 7), "numbers")))
    return found


def under(page, heading):
    return page.partition(f"**{heading}**")[2].partition("\n**")[0]


def test_every_advice_rests_on_claims():
    for words, beginnings in conclusions.ADVICE:
        for start in beginnings:
            assert any(text.startswith(start) for text in claims.CLAIMS), (words, start)


def test_every_claim_is_on_the_page_once():
    texts = [
        text for _, beginnings in conclusions.ADVICE for text in conclusions.rests_on(beginnings)
    ]
    assert sorted(texts) == sorted(claims.CLAIMS)


@pytest.mark.parametrize(
    "kind, heading, said",
    [
        ("fail", "What cannot be relied on", "asked for < 0, seen +1 ± 1 (3)."),
        ("inconclusive", "What these runs cannot tell", "would decide: 7 seeds."),
        ("missing", "What these runs cannot tell", "would decide: its runs."),
    ],
)
def test_one_claim_that_does_not_pass_moves_its_advice_and_no_other(kind, heading, said):
    page = conclusions.page(decided())
    assert under(page, "What can be relied on").count("\n- ") == len(conclusions.ADVICE)
    page = conclusions.page(decided(DiLoCo=kind))
    assert under(page, "What can be relied on").count("\n- ") == len(conclusions.ADVICE) - 1
    (line,) = under(page, heading).strip().split("\n")
    assert line.startswith("- Block momentum of 0.7 trains further") and line.endswith(said)
    assert f"1 {kind}" in line and "[methods](#methods)" in line
