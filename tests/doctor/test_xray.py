"""The X-ray page as text: what it says of a model, whatever that model is."""

import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from plotly.offline import get_plotlyjs
from torch import nn

import batchnorm
from batchnorm import Diagnosis
from batchnorm.doctor.evidence import Layer
from batchnorm.doctor.finding import Finding, Measurement
from batchnorm.doctor.histogram import Histogram
from batchnorm.doctor.xray.channels import dead, drift, pooled, saturated, span
from batchnorm.doctor.xray.network import gradient_ends
from batchnorm.doctor.xray.network import network as middle
from batchnorm.doctor.xray.pictures import POINTS, pictures
from batchnorm.doctor.xray.summary import verdict
from batchnorm.report import Curves
from doctor.xray_models import EVIL, diagnosed, evil, network
from report.loads import Loads


def page(diagnosis: Diagnosis, folder: Path) -> str:
    """The page's text without plotly's script."""
    path = diagnosis.to_html(folder / "page.html")
    assert path == folder / "page.html"
    text = path.read_text("utf-8").replace(get_plotlyjs(), "")
    # Every link leads somewhere, and nothing is fetched.
    targets = Loads.of(text)
    assert all(target.startswith("#") or target == "data:," for target in targets)
    assert {target[1:] for target in targets if target.startswith("#")} <= set(re.findall(r'id="(.*?)"', text))
    return text


def rows(text: str) -> list[str]:
    return re.findall(r"<article .*?</article>", text, re.DOTALL)


def said(markup: str) -> str:
    """What is read on the page."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", markup.replace("<wbr>", ""))).split())


def names(text: str) -> list[str]:
    return [said(re.findall(r"<h3.*?</h3>", row, re.DOTALL)[0]) for row in rows(text)]


def test_findings_have_their_numbers_thresholds_mend_and_layer(tmp_path: Path) -> None:
    model, batches = network()
    model[1].running_var[2] = -1.0
    diagnosis = diagnosed(model, batches, select=["BN004"])
    text = page(diagnosis, tmp_path)
    (finding,) = diagnosis.findings
    shown = text.split('id="finding-BN004"')[1].split("</section>")[0]
    assert '<a href="#layer-1">1</a>' in shown
    words = said(shown)
    for part in (finding.message, finding.mend, "✗ error", "smallest variance: -1 (healthy: at least 0", "fix() mends"):
        assert part in words
    row = rows(text)[0]
    assert "✗ BN004" in said(row)
    assert 'href="#finding-BN004"' in row
    assert "marked" not in rows(text)[1].split(">")[0]
    assert "1 error, 0 warnings, 0 notes" in said(text)


def test_many_findings_of_a_rule_unfold_and_a_mend_for_all_is_said_once(tmp_path: Path) -> None:
    model, batches = network()
    diagnosis = diagnosed(model, batches, select=["BN004"])
    many = tuple(
        Finding("BN004", "poisoned-statistics", path, "error", f"message {number}.", {"n": Measurement(1, 0)}, "mend()")
        for number, path in enumerate(["1", "4", "", "elsewhere"] * 3)
    )
    object.__setattr__(diagnosis, "findings", many)
    text = page(diagnosis, tmp_path)
    section = text.split('id="findings"')[1].split("</section>")[0]
    assert section.count("mend()") == 1
    assert [said(part) for part in re.findall("<summary>(.*?)</summary>", section)] == ["The other 4"]
    assert all(f"message {number}." in section for number in range(12))
    assert "(the model itself)" in section


def test_the_summary_says_what_was_run_and_what_was_not(tmp_path: Path) -> None:
    model, batches = network()
    loss = nn.functional.cross_entropy
    pairs = [(batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in batches]
    model.append(nn.Flatten())
    diagnosis = batchnorm.diagnose(model, batches=pairs, loss=loss)
    words = said(page(diagnosis, tmp_path))
    assert "Model Sequential" in words
    assert "2 (2 × BatchNorm2d), with 12 channels together" in words
    assert "2 batches of 8 samples, the first of shape 8 × 3 × 6 × 6; mean loss" in words
    assert "Backward pass one, through the first batch: it reached 2 of 2 norms" in words
    assert diagnosis.skipped
    for code, why in diagnosis.skipped.items():
        assert f"{code} {why}" in words


def test_rows_stand_in_the_order_of_calls_and_say_what_is_drawn(tmp_path: Path) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early, self.never = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.late(self.early(input).relu())

    text = page(diagnosed(Backwards(), [torch.randn(16, 3)]), tmp_path)
    assert [name.split(",")[0] for name in names(text)] == [
        "1 early BatchNorm1d",
        "2 late BatchNorm1d",
        "3 never BatchNorm1d",
    ]
    assert "no batch reached it" in names(text)[2]
    titles = [re.findall(r'<p class="name">(.*?)</p>', row) for row in rows(text)]
    assert titles[0] == ["Input", "Standardised", "Output", "Drift", "γ and β", "Gradient"]
    assert titles[2] == ["Running mean", "Running variance", "γ and β"]
    assert rows(text)[0].count("<svg") == 6
    told = re.findall(r'role="img" aria-label="(.*?)"', text)
    assert all(len(words) > 20 for words in told)
    assert "Not reached 1 norm by no batch" in said(text)


def test_drift_is_in_running_standard_deviations() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(4, eps=0.0)
    data = torch.randn(64, 4, dtype=torch.float64).float()
    var, mean = torch.var_mean(data.double(), 0, correction=0)
    layer.running_var.copy_(var / 4)
    layer.running_mean.copy_(mean - 1.5 * var.sqrt())
    layer.running_var[3], layer.running_mean[2] = -1.0, math.inf
    (seen,) = diagnosed(layer, [data[:40], data[40:]]).evidence.layers
    found = drift(seen)
    assert found is not None
    np.testing.assert_allclose(found.shift, [3.0, 3.0, math.nan, math.nan], rtol=1e-5)
    np.testing.assert_allclose(found.ratio, [4.0, 4.0, math.nan, math.nan], rtol=1e-5)
    picture = next(each for each in pictures(seen, None) if each.title == "Drift")
    # In evaluation mode the layer standardises by what it has.
    standardised = next(each for each in pictures(seen, None) if each.title == "Standardised")
    assert list(standardised.caption)[:2] == ["eval. mean 3", "eval. std 2"]
    assert list(picture.caption) == ["mean ±3 std", "variance ×4", "2 channels not finite"]
    # Beyond the edge of 2 both are drawn in the other colour; the crossing is agreement.
    assert len(picture.series[2].x) == 0
    assert [round(x, 4) for x in picture.series[3].x] == [3.0, 3.0]
    assert [round(y, 4) for y in picture.series[3].y] == [2.0, 2.0]


def test_dead_and_saturated_channels_are_counted(tmp_path: Path) -> None:
    layer = nn.BatchNorm1d(8)
    with torch.no_grad():
        layer.bias[:2] = -20.0
        layer.weight[2] = 0.0
        layer.bias[5:8] = 9.0
    diagnosis = diagnosed(nn.Sequential(layer, nn.ReLU()), [torch.randn(64, 8)] * 2)
    (seen,) = diagnosis.evidence.layers
    run = seen.in_training
    assert run is not None
    assert dead(run).tolist() == [True, True, True, False, False, False, False, False]
    assert saturated(run).tolist() == [True, True, False, False, False, True, True, True]
    words = said(rows(page(diagnosis, tmp_path))[0])
    assert "3 dead" in words
    assert "5 saturated" in words
    assert "Never above 0 2 of 8 channels: 0, 1" in words
    assert "Give one value 1 of 8 channels: 2" in words
    assert "Mostly beyond ±4 5 of 8 channels: 0, 1, 5, 6, 7" in words


def test_gradients_are_those_that_come_back(tmp_path: Path) -> None:
    model, batches = network()
    pairs = [(batch, torch.zeros(len(batch), 8, 2, 2)) for batch in batches]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).pow(3).sum()

    diagnosis = batchnorm.diagnose(model, batches=pairs, loss=loss)
    output = model[:4](batches[0]).detach().requires_grad_()
    normed = model[4](output)
    normed.retain_grad()
    normed.relu().pow(3).sum().backward()
    ends = gradient_ends(diagnosis.evidence.layers)
    assert ends is not None
    picture = list(pictures(diagnosis.evidence.layers[1], ends))[-1]
    for caption, word, tensor in zip(picture.caption, ("out", "in"), (normed, output), strict=True):
        expected = float(tensor.grad.square().mean().sqrt())
        assert caption == f"{word} {span(np.array([expected]))}"
        assert ends[0] <= expected <= ends[1]
    assert "What comes back through each norm" in page(diagnosis, tmp_path)


def test_without_batches_it_says_so_and_needs_no_plotly(tmp_path: Path) -> None:
    model, _ = network()
    path = batchnorm.diagnose(model).to_html(tmp_path / "page.html")
    assert path.stat().st_size < 150_000
    words = said(path.read_text("utf-8"))
    assert "none were given (batches=)" in words
    assert "Without batches there are no distributions" in words
    assert "Running variance" in words
    assert "The network by depth" not in words


def test_a_checkpoint(tmp_path: Path) -> None:
    model, _ = network()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    text = page(batchnorm.diagnose(state), tmp_path)
    assert "X-ray of a checkpoint" in said(text)
    assert names(text) == ["1 module.1 4 channels", "2 module.4 8 channels"]
    assert rows(text)[0].count("<svg") == 3


def test_a_model_without_norms(tmp_path: Path) -> None:
    text = page(diagnosed(nn.Sequential(nn.Linear(2, 2)), [torch.randn(4, 2)]), tmp_path)
    assert rows(text) == []
    assert "The model has no batch norm." in said(text)
    assert "Summary no norms" in said(text)
    assert "nothing found" not in said(text)
    assert "No batch norm was found in it." in said(text)
    assert "JavaScript" not in said(text)


@pytest.mark.parametrize(("weight", "words"), [(math.nan, "not finite"), (0.0, "0 came back")])
def test_a_gradient_that_is_none_is_told_from_none_that_came(weight: float, words: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    nn.init.constant_(model[2].weight, weight)
    text = page(diagnosed(model, [torch.randn(8, 3)]), tmp_path)
    assert rows(text)[0].count(f'<p class="none">{words}</p>') == 1
    assert "none came back" not in said(text)
    assert f"No gradients are drawn: {words.removesuffix(' came back')} at 1." in said(text)


def test_norms_that_a_chart_leaves_out_are_named(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(3, track_running_stats=place != 1) for place in range(4)))
    model[2].running_mean.fill_(math.nan)
    words = said(page(diagnosed(model, [torch.randn(8, 3)]), tmp_path))
    assert "Not among the running means and variances: no running statistics at 1; not finite at 2." in words
    assert "Where the gradients have gaps: none came back at 0." not in words
    for layer in model:
        nn.init.constant_(layer.weight, math.nan)
        if layer.running_mean is not None:
            layer.running_mean.fill_(math.nan)
    text = page(diagnosed(model, [torch.randn(8, 3)]), tmp_path)
    assert "No running means and variances are compared: not finite at 0, 2, 3; no running stat" in said(text)
    assert "3 channels not finite" in said(rows(text)[0])


def test_what_is_not_finite_is_counted_once() -> None:
    batch = torch.randn(8, 3)
    batch[0, 1] = math.nan
    (seen,) = diagnosed(nn.BatchNorm1d(3), [batch]).evidence.layers
    captions = {each.title: list(each.caption) for each in pictures(seen, None)}
    assert captions["Input"][-1] == "1 not finite"
    assert captions["Output"][-1] == "1 channel not finite"


def test_an_edge_that_should_be_0_is_0() -> None:
    (seen,) = diagnosed(nn.BatchNorm1d(3), [torch.randn(64, 3).relu()]).evidence.layers
    run = seen.in_training
    assert run is not None
    histogram = Histogram(-4.4e-16, 3.0, run.input.bins)
    histogram.counts += 1
    object.__setattr__(run, "input", histogram)
    object.__setattr__(seen, "in_evaluation", None)
    assert next(iter(pictures(seen, None))).x_ends[0] == "0"


def test_few_norms_have_whole_numbers_at_the_axis() -> None:
    model, batches = network()
    section = middle(diagnosed(model, batches))
    assert section is not None
    charts = [block for block in section.blocks if isinstance(block, Curves)]
    assert len(charts) >= 3
    assert [list(chart.x_ticks or ()) for chart in charts] == [[1, 2]] * len(charts)


def test_the_badge_and_the_lead_say_no_more_than_was_looked_at(tmp_path: Path) -> None:
    model, batches = network()
    diagnosis = batchnorm.diagnose(model.eval())
    object.__setattr__(diagnosis, "findings", ())
    ran, skipped = len(diagnosis.rules), len(diagnosis.skipped)
    assert skipped > ran
    assert verdict(diagnosis) == (f"nothing found by {ran} of {ran + skipped} rules", "open")
    assert "2 batch norms, one by one: what it holds, and which mistakes" in said(page(diagnosis, tmp_path))
    assert verdict(diagnosed(model, batches)) == ("nothing found", "good")
    words = said(page(diagnosed(model[:3], batches), tmp_path))
    assert "1 batch norm: what comes in" in words
    assert "The plots need JavaScript; each layer's numbers and small pictures do not." in words


def test_a_name_turns_no_text_around(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("\u202ename", nn.BatchNorm1d(3))
    model[0].running_var.fill_(-1.0)
    text = page(diagnosed(model, [torch.randn(8, 3)]), tmp_path)
    assert "\u202e" not in text.split("<body>")[1].split('<script type="application/json"')[0]
    assert names(text)[0].startswith("1 \\u202ename")


def odd() -> dict[str, tuple[nn.Module, list[torch.Tensor]]]:
    """Norms that lack something, or hold what is no number."""
    poisoned = nn.BatchNorm1d(3)
    poisoned.running_mean[0], poisoned.running_var[1:] = math.nan, math.inf
    nan = torch.full((8, 3), math.nan)
    lifeless = nn.BatchNorm1d(3)
    nn.init.constant_(lifeless.weight, math.nan)
    huge = nn.BatchNorm1d(3)
    huge.running_mean.fill_(1e38)
    batch = torch.randn(8, 3)
    frozen = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    batchnorm.freeze(frozen)
    return {
        "without affine": (nn.BatchNorm1d(3, affine=False), [batch]),
        "without statistics": (nn.BatchNorm1d(3, track_running_stats=False), [batch]),
        "poisoned": (poisoned, [batch]),
        "all poisoned": (poisoned, [nan]),
        "input not finite": (nn.BatchNorm1d(3), [nan]),
        "one value not finite": (nn.BatchNorm1d(3), [torch.cat([batch, nan[:1]])]),
        "constant input": (nn.BatchNorm1d(3), [torch.ones(8, 3)]),
        "gamma not finite": (lifeless, [batch]),
        "huge": (huge, [1e30 * batch]),
        "one channel": (nn.BatchNorm1d(1), [batch[:, :1]]),
        "cumulative": (nn.BatchNorm1d(3, momentum=None), [batch]),
        "frozen": (frozen, [batch]),
        "domains": (batchnorm.DomainBatchNorm1d(3, domains=("source", "target")), [batch]),
        "fused": (batchnorm.BatchNormAct1d(3), [batch]),
        "ghost": (batchnorm.GhostBatchNorm1d(3, ghost_size=4), [batch]),
        "half": (nn.BatchNorm1d(3).bfloat16(), [batch.bfloat16()]),
        "lazy": (nn.LazyBatchNorm1d(), []),
    }


@pytest.mark.parametrize("name", list(odd()))
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_odd_norms_have_their_row(name: str, tmp_path: Path) -> None:
    model, batches = odd()[name]
    text = page(batchnorm.diagnose(model, batches=batches or None, select=["BN004", "BN005"]), tmp_path)
    assert len(rows(text)) == 1
    # Numbers that are none are said in words, and none get into a drawing.
    assert not re.search(r'd="[^"]*(nan|inf)', text)
    assert not re.search(r">[^<]*\b(nan|inf)\b[^<]*<", text.split("<main")[1].split("<script")[0].replace("BN", ""))


def test_everything_that_is_the_users_is_escaped(tmp_path: Path) -> None:
    text = page(evil(), tmp_path)
    # The menu's, the data, plotly's place and the page's own.
    assert text.count("<script") == text.count("</script>") == 4
    assert "<img" not in text
    assert names(text)[0].startswith(f"1 {EVIL}.1")
    assert f"X-ray of {EVIL}" in said(text)


def test_more_channels_than_can_be_seen_are_thinned_and_the_farthest_is_kept() -> None:
    layer = nn.BatchNorm1d(2000)
    layer.running_mean[777] = 5.0
    (seen,) = diagnosed(layer, [torch.randn(32, 2000)]).evidence.layers
    for picture in pictures(seen, None):
        assert sum(len(series.x) for series in picture.series) < 2 * POINTS
    far = next(each for each in pictures(seen, None) if each.title == "Drift").series[3]
    assert min(far.x) < -4


def test_a_hundred_norms_make_a_page_of_sensible_size(tmp_path: Path) -> None:
    layers: list[nn.Module] = []
    for _ in range(121):
        layers += [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()]
    text = page(diagnosed(nn.Sequential(*layers), [torch.randn(64, 8)]), tmp_path)
    assert len(rows(text)) == 121
    assert len(text) < 2_000_000
    listed = re.findall(r"<table[^>]*farthest from the data.*?</table>", text)
    assert [table.count("<tr") for table in listed] == [1 + 8]


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    model, _ = network()
    diagnosis = batchnorm.diagnose(model, select=["BN004"])

    def fails(_: int) -> None:
        raise OSError

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError):  # noqa: PT011 - it is that one
        diagnosis.to_html(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_channels_together_are_those_of_all_their_values() -> None:
    values = np.random.default_rng(0).normal([[1.0, -2.0, 0.5]], [[1.0, 0.1, 3.0]], (500, 3))
    mean, std = pooled(values.mean(0), values.var(0))
    assert mean == pytest.approx(values.mean())
    assert std == pytest.approx(values.std())
    assert math.isnan(pooled(np.array([math.nan]), np.array([1.0]))[0])


def test_a_layer_alone_is_a_model(tmp_path: Path) -> None:
    layer = nn.BatchNorm1d(3)
    assert isinstance(diagnosed(layer, [torch.randn(8, 3)]).evidence.layers[0], Layer)
    assert names(page(diagnosed(layer, [torch.randn(8, 3)]), tmp_path)) == [
        "1 (the model itself) BatchNorm1d, 3 channels"
    ]
