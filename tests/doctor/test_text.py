import re

import torch
from torch import nn

import batchnorm
from batchnorm.doctor.as_text import as_text, report
from batchnorm.doctor.finding import Measurement
from batchnorm.doctor.rule import Need
from doctor.made import NOTHING, diagnosis, finding


def lines(*findings, **options) -> list[str]:
    return as_text(diagnosis(*findings), **options).splitlines()


def test_a_finding_is_a_line_that_can_be_searched_for_and_what_stands_behind_it():
    each = finding(evidence={"momentum": Measurement(0.99, 0.5), "from": Measurement("keras")}, fix=NOTHING)
    assert lines(each) == [
        str(each),
        "    momentum: 0.99 (healthy: at most 0.5)",
        "    from: keras",
        '    mend: model.get_submodule("stem.1").momentum = 0.01',
        "    fix: does nothing",
        "",
        "1 warning; 3 batch norms, 1 rule",
        "1 safe mend: .fix()",
    ]


def test_findings_that_differ_are_told_one_by_one():
    told = lines(
        finding("a", "error", "BN004"), finding("b"), finding("c", evidence={"momentum": Measurement(0.7, 0.5)})
    )
    assert sum(line.startswith("    mend: ") for line in told) == 3
    assert told[-1] == "1 error, 2 warnings; 3 batch norms, 2 rules"


def many(count: int, same: bool = False):
    return [
        finding(
            f"features.block{number}.norm",
            message=f"momentum is {0.6 + number / 1000:.3f}.",
            evidence={"momentum": Measurement(0.9 if same else 0.6 + number / 1000, 0.5, unit="a step")},
            mend=f'model.get_submodule("features.block{number}.norm").momentum = 0.1',
        )
        for number in range(count)
    ]


def test_the_numbers_of_many_findings_stand_once():
    told = lines(*many(121), whole=True)
    assert told[:121] == [str(each) for each in many(121)]
    assert told[121:] == [
        "    momentum: 0.6 to 0.72 a step (healthy: at most 0.5)",
        '    mend: model.get_submodule("features.block0.norm").momentum = 0.1   # and so at the others',
        "",
        "121 warnings; 3 batch norms, 1 rule",
    ]


def test_equal_numbers_stand_once_even_of_two():
    assert sum(line.startswith("    momentum: ") for line in lines(*many(2, same=True))) == 1
    assert sum(line.startswith("    momentum: ") for line in lines(*many(2))) == 2


def test_of_many_findings_the_others_are_counted_by_their_paths():
    told = lines(*many(121), finding("head", message="momentum is 0.7.", evidence=many(2)[1].evidence))
    assert told[:5] == [str(each) for each in many(5)]
    assert told[5] == "and 117 more of BN011 at features.block*.norm (116), head"
    assert len(told) < 12
    assert as_text(diagnosis(*many(121))) == str(diagnosis(*many(121)))


def test_one_more_than_is_shown_is_shown_too():
    assert not any(line.startswith("and ") for line in lines(*many(6)))
    assert any(line.startswith("and 2 more") for line in lines(*many(7)))


def test_measurements_that_are_words_or_have_limits_of_their_own():
    words = [finding(str(n), evidence={"dtype": Measurement(f"float{n % 2}", "float32", "equal to")}) for n in range(5)]
    assert "    dtype: float0 (healthy: equal to float32), float1 (healthy: equal to float32)" in lines(*words)
    limits = [finding(str(n), evidence={"count": Measurement(n, 10 * n, "at least")}) for n in range(1, 6)]
    assert "    count: 1 (healthy: at least 10) to 5 (healthy: at least 50)" in lines(*limits)
    infinite = [finding(str(n), evidence={"gap": Measurement(float(n) if n else torch.inf, 0.0)}) for n in range(5)]
    assert "    gap: 1 to inf (healthy: at most 0)" in lines(*infinite)


def test_what_was_not_checked_is_said_with_what_to_give():
    skipped = {"BN001": Need.BATCHES.value, "BN009": Need.BATCHES.value, "BN016": Need.OPTIMIZER.value}
    done = diagnosis(skipped=skipped, ignored=2)
    assert as_text(done).splitlines() == [
        "no findings; 3 batch norms, 0 rules",
        "2 findings left out for their layers (per-layer ignores)",
        "not checked: BN001, BN009: no batches were given (batches=)",
        "not checked: BN016: no optimizer was given (optimizer=)",
    ]
    assert "(--batches TARGET)" in as_text(done, command_line=True)
    assert "(--optimizer TARGET)" in as_text(done, command_line=True)


def test_names_out_of_files_cannot_break_lines_or_steer_a_terminal():
    state = nn.BatchNorm1d(2).state_dict()
    state["running_var"] = -state["running_var"]
    odd = {f"a\x1b[2J\nb.{name}": each for name, each in state.items()}
    told = str(batchnorm.diagnose(odd, select=["BN004"]))
    assert told.startswith(r"a\x1b[2J\nb: error BN004 ")
    assert "\x1b" not in told


def test_pieces_are_the_lines():
    done = diagnosis(finding("a", "error", "BN004", fix=NOTHING), *many(9), skipped={"BN016": "no reason"})
    pieces = list(report(done))
    assert "\n".join("".join(text for _, text in line) for line in pieces) == as_text(done)
    assert {kind for line in pieces for kind, _ in line} == {"error", "warning", "layer", "note", ""}


def test_a_real_diagnosis_prints_every_finding():
    model = nn.Sequential(*(nn.BatchNorm1d(2, momentum=0.6 + number / 100) for number in range(8)))
    done = batchnorm.diagnose(model, select=["BN011"])
    told = as_text(done, whole=True).splitlines()
    assert [line for line in told if re.match(r"\d: ", line)] == [str(each) for each in done.findings]
