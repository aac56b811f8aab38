"""What the planted models do not show of BN002, BN003 and BN019: how bad it is, and what is said."""

from __future__ import annotations

import pytest

from doctor.plant import plants


@pytest.mark.parametrize(
    ("rule", "name", "severity", "words"),
    [
        ("BN002", "backbone_under_no_grad", "warning", "it is run under torch.no_grad, "),
        ("BN002", "an_optimizer_of_the_head", "info", "if no other optimizer trains it"),
        (
            "BN003",
            "a_last_batch_of_one_image",
            "warning",
            "1 of 16 samples: each norm normalises it by itself, by 196 values a channel at 1 and no fewer elsewhere.",
        ),
        ("BN003", "a_small_last_batch", "warning", "7 of 64 samples: 7 values a channel at 1, and fewer than 32 at 1 "),
        ("BN019", "as_many_positions_as_features", "warning", "of 3 (Linear) are dimension 2."),
        (
            "BN019",
            "along_the_last_dimension_of_what_is_unknown",
            "info",
            "of 0 (Linear) are dimension 2: it is the wrong one if dimension 1 are positions.",
        ),
    ],
)
def test_how_bad_it_is_and_what_is_said(rule: str, name: str, severity: str, words: str) -> None:
    plant = next(each for each in plants() if each.rule == rule and each.name == name)
    (finding,) = plant.case().diagnose(select=[rule]).findings
    assert finding.severity == severity
    assert words in finding.message
    shown = [each for each in finding.evidence.values() if each.threshold is not None and each.healthy == "at least"]
    # What is shown with a threshold is on the other side of it.
    assert all(each.value < each.threshold for each in shown)


@pytest.mark.parametrize("name", ["backbone_under_no_grad", "an_optimizer_of_the_head"])
def test_what_may_be_trained_elsewhere_is_not_frozen(name: str) -> None:
    plant = next(each for each in plants() if each.name == name)
    assert plant.case().diagnose(select=["BN002"]).fix() == ()
