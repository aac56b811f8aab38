"""What feeds what in training, and training without dropout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchnorm
from batchnorm.doctor.dropout import NoDropout
from batchnorm.doctor.walk import by_batch, dropouts_before, normalized
from batchnorm.surgery.trace import trace

KINDS = [
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    batchnorm.BatchNorm2d,
    batchnorm.BatchNormAct2d,
    batchnorm.GhostBatchNorm2d,
    batchnorm.BatchRenorm2d,
    batchnorm.DomainBatchNorm2d,
    batchnorm.SyncBatchNorm,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.split('.')[0]}.{kind.__name__}")
def test_every_kind_normalises_its_input_by_the_batch(kind: type[nn.Module]):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4))
    graph = trace(model, torch.randn(64, 3, 6, 6))
    (conv,), (norm,) = graph.calls_of(model[0]), graph.calls_of(model[1])
    assert by_batch(norm)
    assert normalized(norm) is conv.gives[0]


@pytest.mark.parametrize("freezes", ["class", "function", "mode"])
def test_frozen_norms_do_not(freezes: str):
    model = nn.Sequential(batchnorm.FrozenBatchNorm2d(3) if freezes == "class" else nn.BatchNorm2d(3))
    if freezes == "function":
        batchnorm.freeze(model)
    if freezes == "mode":
        model.eval()
    (norm,) = trace(model, torch.randn(2, 3, 4, 4)).calls
    assert not by_batch(norm)
    assert normalized(norm) is not None


def test_dropout_that_works_in_place_feeds_what_reads_the_tensor_later():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop, self.norm = nn.Linear(3, 4), nn.Dropout(inplace=True), nn.BatchNorm1d(4)

        def forward(self, input):
            hidden = self.linear(input)
            self.drop(hidden)
            return self.norm(hidden)

    model = InPlace()
    (norm,) = trace(model, torch.randn(2, 3)).calls_of(model.norm)
    assert [str(call) for call in dropouts_before(norm)] == ["drop (Dropout)"]


def test_norms_even_out_what_they_normalise_and_not_what_they_add():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.layer, self.group = nn.Dropout(), nn.LayerNorm(5), nn.GroupNorm(2, 4)
            self.first, self.second = batchnorm.BatchNormAct1d(4), nn.BatchNorm1d(4)

        def forward(self, input, adds: bool = False):
            dropped = self.drop(input)
            return self.second(self.first(self.group(self.layer(dropped)), residual=dropped if adds else None))

    model, input = Added(), torch.randn(2, 4, 5)
    for adds in (False, True):
        graph = trace(model, (input, adds))
        first, second = (dropouts_before(graph.calls_of(norm)[0]) for norm in (model.first, model.second))
        assert first == []
        assert [str(call) for call in second] == (["drop (Dropout)"] if adds else [])


DROPOUTS = [
    *(nn.Dropout(0.9), nn.Dropout(0.9, inplace=True), nn.Dropout1d(0.9), nn.AlphaDropout(0.9)),
    nn.FeatureAlphaDropout(0.9),
]


@pytest.mark.parametrize("layer", DROPOUTS, ids=lambda layer: type(layer).__name__)
def test_without_dropout_a_layer_gives_what_it_takes(layer: nn.Module):
    ones = torch.ones(2, 8, 5)
    with NoDropout():
        assert torch.equal(layer(ones.clone()), ones)
    assert not torch.equal(layer(ones.clone()), ones)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("packed", [False, True])
def test_without_dropout_recurrent_layers_are_those_of_evaluation(kind: type[nn.RNNBase], packed: bool):
    layer, sequences = kind(3, 4, 2, dropout=0.9), torch.randn(5, 2, 3)
    input = nn.utils.rnn.pack_padded_sequence(sequences, [5, 3]) if packed else sequences

    def run() -> torch.Tensor:
        output = layer(input)[0]
        return output.data if packed else output

    with NoDropout():
        without = run()
    assert not torch.equal(run(), without)
    layer.eval()
    assert torch.allclose(run(), without)


@pytest.mark.parametrize("causal", [False, True])
def test_without_dropout_attention_is_that_of_evaluation(causal: bool):
    query, key, value = torch.randn(3, 2, 4, 8)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    with NoDropout():
        by_place = F.scaled_dot_product_attention(query, key, value, None, 0.9, causal)
        by_name = F.scaled_dot_product_attention(query, key, value, dropout_p=0.9, is_causal=causal)
    assert torch.equal(by_place, expected)
    assert torch.equal(by_name, expected)


@pytest.mark.parametrize("given", ["in training", "with an optimizer", "with a loss"])
def test_what_is_trained_is_not_deployed(given: str):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    options = {}
    if given != "in training":
        model.eval()
    if given == "with an optimizer":
        options["optimizer"] = torch.optim.SGD(model.parameters(), 0.1)
    if given == "with a loss":
        options["loss"] = lambda output, target: (output - target).square().mean()
    diagnosis = batchnorm.diagnose(
        model, batches=[(torch.randn(2, 3, 4, 4), torch.randn(2, 16))], select=["BN028"], **options
    )
    assert "deployed" in diagnosis.skipped["BN028"]
