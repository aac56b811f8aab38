from batchnorm.study import Verdict
from batchnorm.study.statements import joined, rank


def test_what_refutes_decides_before_what_is_open_and_that_before_what_holds() -> None:
    refuted, is_open, holds = Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE, Verdict.REPRODUCED
    assert sorted((holds, is_open, refuted), key=rank) == [refuted, is_open, holds]
    assert joined([holds, refuted, is_open]) is refuted
    assert joined([holds, is_open]) is is_open
    assert joined([holds, holds]) is holds
