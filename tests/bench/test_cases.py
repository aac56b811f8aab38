import math
from collections import Counter

import pytest
import torch

from batchnorm.bench.cases import DTYPES, FORMATS, Case, all_cases, select, usual_cases
from batchnorm.bench.inputs import as_format, copies, draw
from batchnorm.bench.networks import NETWORKS, Norm
from batchnorm.errors import ArgumentError


# Norms, their channels and the values they normalise in one sample: counted once by hooks in torchvision's networks.
@pytest.mark.parametrize(
    ("network", "norms", "channels", "values"),
    [
        ("resnet18", 20, 4800, 2483712),
        ("resnet50", 53, 26560, 11113984),
        ("mobilenet_v2", 52, 17056, 6678112),
        ("efficientnet_b0", 49, 21008, 6737696),
        ("densenet121", 121, 41824, 15667456),
    ],
)
def test_a_network_has_as_many_norms_channels_and_values_as_the_real_one(network, norms, channels, values):
    found = list(NETWORKS[network][1]())
    assert len(found) == norms
    assert sum(norm.channels for norm in found) == channels
    assert sum(norm.channels * math.prod(norm.spatial) for norm in found) == values


@pytest.mark.parametrize(
    ("network", "norm", "times"),
    [
        ("resnet18", Norm(512, (7, 7), "relu", True), 2),
        ("resnet50", Norm(256, (56, 56), "relu", True), 3),
        ("resnet50", Norm(2048, (7, 7)), 1),
        ("mobilenet_v2", Norm(64, (14, 14), residual=True), 3),
        ("efficientnet_b0", Norm(240, (28, 28), "silu"), 3),
        ("densenet121", Norm(128, (14, 14), "relu"), 24),
        ("unet_3d", Norm(64, (64, 64, 64), "relu"), 3),
        ("unet_3d", Norm(512, (8, 8, 8), "relu"), 1),
    ],
)
def test_a_network_has_its_norms(network, norm, times):
    assert Counter(NETWORKS[network][1]())[norm] == times


def test_every_network_and_kind_is_among_the_cases():
    kinds = {kind for case in all_cases() for kind, _ in case.occurs}
    assert kinds == {*NETWORKS, "tabular", "sequence", "tiny"}


def test_names_are_unique_and_say_what_is_measured():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
    case = Case((32, 64, 56, 56), "relu", residual=True, format="channels-last", dtype="bfloat16")
    assert case.name == "32x64x56x56/norm+add+relu/channels-last/bfloat16"
    assert case.bytes == 2 * 32 * 64 * 56 * 56


def test_shapes_are_those_of_layers_that_exist():
    for case in all_cases():
        assert 2 <= len(case.shape) <= 5
        assert min(case.shape) > 0
        assert case.format in FORMATS
        assert case.dtype in DTYPES
        assert all(times > 0 for _, times in case.occurs)
        assert len(case.shape) > 2 or case.format == "contiguous"


def test_every_mode_format_and_dtype_is_there():
    found = {(case.mode, case.format, case.dtype) for case in all_cases()}
    modes = {"norm", "norm+act", "norm+add", "norm+add+act", "evaluation"}
    assert found == {(mode, format, dtype) for mode in modes for format in FORMATS for dtype in DTYPES}


def test_the_usual_cases_hold_some_of_every_kind():
    usual = usual_cases()
    assert set(usual) < set(all_cases())
    assert {kind for case in usual for kind, _ in case.occurs} == {*NETWORKS, "tabular", "sequence", "tiny"}
    assert {case.mode for case in usual} == {case.mode for case in all_cases()}
    assert {case.dtype for case in usual} == set(DTYPES)


def test_the_usual_table_names_only_layers_that_exist():
    from batchnorm.bench.cases import _USUAL

    assert set(_USUAL) <= {(case.shape, case.operation) for case in all_cases()}


def test_words_must_all_match_and_choices_add_up():
    both = select(["resnet50,float32,channels-last", "2x8,norm"])
    first = [case for case in both if len(case.shape) == 4]
    assert first
    assert all("resnet50" in dict(case.occurs) and case.dtype == "float32" for case in first)
    assert [case.name for case in both if len(case.shape) == 2] == [f"2x8/norm/contiguous/{dtype}" for dtype in DTYPES]
    assert select() == usual_cases()
    assert select(["all"]) == all_cases()
    assert set(select(["usual,evaluation"])) == {case for case in usual_cases() if not case.training}
    assert all(case.shape[1] == 64 for case in select(["32x64x*"]))


@pytest.mark.parametrize("choice", ["nope", "resnet50,2x8", "", ",", "usual,nope"])
def test_a_choice_that_names_nothing_is_refused(choice):
    with pytest.raises(ArgumentError, match="Mend: use usual, all, a network or kind"):
        select([choice])


def test_an_unknown_word_is_named():
    with pytest.raises(ArgumentError, match="no case is named nope"):
        select(["resnet50,nope"])


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 6)])
def test_channels_last_stores_channels_side_by_side(shape):
    x = torch.randn(shape)
    last = as_format(x, "channels-last")
    assert torch.equal(x, last)
    assert last.stride(1) == 1
    assert as_format(last, "contiguous").is_contiguous()


def test_draws_are_the_same_every_time_and_differ_by_case():
    case, other = select(["64x16,norm+act,float32"])[0], select(["64x16,norm,float32"])[0]
    assert torch.equal(draw(case).x, draw(case).x)
    assert not torch.equal(draw(case).x, draw(other).x)


def test_inputs_rotate_through_more_than_the_caches():
    caches = 2 << 20
    small = Case((64, 16, 8, 8), "relu")
    assert copies(small, caches) * 2 * small.bytes >= 2 * 2 << 20
    assert (copies(small, caches) - 1) * 2 * small.bytes < 2 * 2 << 20
    assert copies(Case((32, 64, 56, 56)), caches) == 2
    assert copies(Case((2, 8)), caches) == 256
