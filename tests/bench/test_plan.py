from batchnorm.bench.cases import all_cases
from batchnorm.bench.plan import in_order, spread


def test_the_first_round_has_the_largest_of_every_kind_and_none_is_left_out():
    rounds = in_order(all_cases())
    kinds = {(case.mode, case.format, case.dtype) for case in all_cases()}
    assert {(case.mode, case.format, case.dtype) for case in rounds[0]} == kinds
    assert len(rounds[0]) == len(kinds)
    assert (rounds[0][0].dtype, rounds[0][0].format) == ("bfloat16", "channels-last")
    largest = max(case.bytes for case in all_cases() if case.mode == "norm" and case.dtype == "float16")
    assert largest in {case.bytes for case in rounds[0]}
    flat = [case for found in rounds for case in found]
    assert len(flat) == len(all_cases())
    assert set(flat) == set(all_cases())


def test_any_beginning_is_spread_over_the_whole():
    assert spread([]) == []
    assert spread([7]) == [7]
    found = spread(range(100))
    assert sorted(found) == list(range(100))
    assert found[:3] == [0, 99, 49]
    assert max(b - a for a, b in zip(sorted(found[:17]), sorted(found[:17])[1:], strict=False)) <= 8
