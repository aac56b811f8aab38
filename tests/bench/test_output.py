import csv
import importlib.util
import io
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from batchnorm.bench import output
from batchnorm.bench.cases import Case
from batchnorm.bench.faults import Usage
from batchnorm.bench.page import page
from batchnorm.bench.row import COLUMNS, merged, read, table, with_times, write
from batchnorm.bench.summary import findings, losses, memory, noise, side_by_side, wrong
from batchnorm.bench.timing import Samples
from batchnorm.errors import ArgumentError
from bench.helpers import beside, row

ROOT = Path(__file__).parents[2]
CASE = Case((32, 64, 56, 56), "relu")


def script(path: Path):
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_rows_come_back_from_the_file_as_they_were(tmp_path):
    rows = [
        *beside(CASE, 2.5, kept_bytes=123456789, fault_share=0.25, faults=12.5, times_limit=1.125),
        row(CASE, "compile", status="wrong", reason='output: error 1, "allowed", 0', microseconds=None, residual=True),
    ]
    write(rows, tmp_path / "rows.csv")
    assert read(tmp_path / "rows.csv") == rows
    header, *lines = csv.reader(io.StringIO(table(rows)))
    assert header == COLUMNS
    assert len(lines) == 3
    for needed in ("case", "shape", "format", "dtype", "mode", "threads", "torch", "processor", "instruction_set"):
        assert all(line[header.index(needed)] for line in lines)
    assert all(line[header.index("date")] == "2026-01-01" for line in lines)


def test_a_file_keeps_four_figures_of_what_was_measured_and_all_of_what_was_counted(tmp_path):
    write([row(CASE, "eager", microseconds=1234567.89, kept_bytes=1234567890123)], tmp_path / "rows.csv")
    (again,) = read(tmp_path / "rows.csv")
    assert (again.microseconds, again.kept_bytes) == (1235000.0, 1234567890123)


def test_samples_make_a_row_timed():
    untimed = row(CASE, "eager", status="unavailable", microseconds=None)
    samples = Samples([1e-3 * number for number in range(1, 7)], calls=12, spent=Usage(24, 1.0, 3.0))
    found = with_times(untimed, samples, Samples([0.5e-3 * number for number in range(1, 7)]), repetitions=2)
    assert (found.status, found.rounds, found.repetitions) == ("timed", 6, 2)
    times = (found.microseconds_20, found.microseconds, found.microseconds_80)
    assert times == pytest.approx((2000.0, 3500.0, 5000.0))
    assert (found.ratio, found.ratio_low, found.ratio_high) == pytest.approx((2.0, 2.0, 2.0))
    assert (found.faults, found.fault_share) == (2.0, 0.25)
    alone = with_times(untimed, samples, None, repetitions=2)
    assert (alone.ratio, alone.ratio_low, alone.ratio_high) == (None, None, None)
    assert alone.microseconds == found.microseconds


def test_another_table_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("case,speed\n1,2\n")
    with pytest.raises(ArgumentError, match="is no table of this version's benchmarks"):
        read(tmp_path / "rows.csv")


def test_a_file_from_before_a_column_was_added_is_read(tmp_path):
    rows = beside(CASE, 2.0, kept_bytes=7)
    write(rows, tmp_path / "rows.csv")
    header, *lines = csv.reader(io.StringIO((tmp_path / "rows.csv").read_text()))
    place = header.index("speedup")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*line[:place], *line[place + 1 :]] for line in [header, *lines])
    assert read(tmp_path / "rows.csv") == rows
    place = header.index("case")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(line[place + 1 :] for line in [header, *lines])
    with pytest.raises(ArgumentError, match="is no table"):
        read(tmp_path / "rows.csv")


def test_new_rows_take_the_place_of_old_ones():
    old, new = beside(CASE, 2.0), beside(CASE, 3.0)
    other = row(Case((2, 8)), "eager")
    found = merged([*old, other], new[1:])
    assert found == [old[0], new[1], other]
    modes = [row(CASE, "eager", mode=mode) for mode in ("model", "model inference")]
    assert merged(modes[:1], modes[1:]) == modes


LAST = {"format": "channels-last"}


def some_rows():
    rows = []
    for height, ratio in ((56, 2.0), (28, 3.0), (14, 4.0)):
        shape = (32, 256, height, height)
        rows += beside(Case(shape, "relu"), ratio, times_limit=ratio, fault_share=0.1)
        rows += beside(Case(shape, "relu", residual=True, **LAST), ratio / 2, times_limit=ratio / 2, fault_share=0.3)
        rows += beside(Case(shape), ratio / 4)
        rows += beside(Case(shape, "relu", training=False), ratio)
        rows += beside(Case(shape, "relu"), 10 * ratio, contender="compile")[1:]
    return rows + beside(Case((8192, 128), "relu"), 8.0)


def test_the_findings_are_computed_from_the_rows():
    found = {finding.name: finding for finding in findings(some_rows())}
    values = {name: (finding.value, finding.cases, finding.met) for name, finding in found.items()}
    assert values["norm (+ add) + act, contiguous, by eager: median"] == (3.0, 3, True)
    # (N, C) has its channels side by side: 1, 1.5, 2 and 8.
    assert values["norm (+ add) + act, channels-last and (N, C), by eager: median"] == (1.75, 4, False)
    assert values["norm (+ add) + act over 1 MB, by eager: 10th percentile"] == (pytest.approx(1.3), 7, False)
    assert values["norm (+ add) + act, by torch.compile: median"] == (30.0, 3, True)
    assert values["norm alone, by eager: median"] == (0.75, 3, False)
    assert values["evaluation, by eager: median"] == (3.0, 3, True)
    assert values["share of all cases slower than eager"] == (pytest.approx(2 / 13), 13, None)
    beyond = "share slower than eager beyond noise (the interval of the ratio ends below 1)"
    assert values[beyond] == (pytest.approx(2 / 13), 13, False)
    # Inputs from 16 MB: those of 56² (103 MB) and 28² (26 MB).
    assert values["time by the limit, training, inputs from 16 MB: median"] == (1.75, 4, False)


def test_without_rows_nothing_is_measured_and_no_target_is_met():
    found = findings([])
    assert all(finding.value is None and finding.met is None for finding in found)
    assert {finding.cells[1] for finding in found} == {"not measured"}


def test_who_is_wrong_or_absent_is_in_no_finding():
    rows = [row(CASE, "batchnorm", status="wrong"), row(CASE, "eager", ratio=None)]
    rows.append(row(CASE, "eager", mode="model inference", ratio=0.5, ratio_low=0.4, ratio_high=0.6))
    assert all(finding.value is None for finding in findings(rows))
    assert wrong(rows) == rows[:1]
    assert wrong(rows, ["eager"]) == []
    assert wrong([row(CASE, "fold", status="wrong")])


def test_a_loss_within_noise_is_none():
    close = row(CASE, "eager", ratio=0.97, ratio_low=0.9, ratio_high=1.01)
    lost = row(CASE, "eager", ratio=0.9, ratio_low=0.85, ratio_high=0.95)
    worse = row(CASE, "eager", ratio=0.5, ratio_low=0.45, ratio_high=0.55)
    assert losses([close, lost, worse]) == [worse, lost]


def test_a_user_is_told_when_page_faults_cost_and_what_helps():
    paying = memory(some_rows())
    assert (paying.ours, paying.eager, paying.cases) == (pytest.approx(0.2), pytest.approx(0.2), 4)
    assert "THP_MEM_ALLOC_ENABLE=1" in paying.sentence
    free = memory(beside(Case((32, 256, 56, 56), "relu"), 2.0, fault_share=0.01))
    assert free.sentence.endswith("memory is no bottleneck here.")
    assert memory(beside(Case((2, 8), "relu"), 2.0, fault_share=0.5)) is None


def test_noise_is_said():
    assert noise(some_rows()) == ""
    assert "spans a factor of 2.0" in noise([row(CASE, "eager", ratio=1.4, ratio_low=1.0, ratio_high=2.0)])
    assert noise([]) == ""


def test_tables_have_their_channels_side_by_side():
    assert side_by_side(row(Case((64, 16)), "eager"))
    assert side_by_side(row(Case((64, 16, 8), **LAST), "eager"))
    assert not side_by_side(row(Case((64, 16, 8)), "eager"))


def test_the_page_says_what_the_rows_say():
    text = page(some_rows())
    assert "batchnorm is faster than eager torch in 9 of 13 cases" in text
    assert "batchnorm is faster than torch.compile in 3 of 3 cases" in text
    assert "13 cases timed; 0 of ours broke the tolerance." in text
    assert "at least 3.00×" in text
    assert "Slower than eager torch beyond noise, the worst first: 32x256x56x56/norm/contiguous/float32 (0.5)" in text
    other = page([row(CASE, "batchnorm", status="wrong", reason="output: error 1, allowed 0", microseconds=None)])
    assert f"0 cases timed; 1 of ours broke the tolerance: {CASE.name}." in other
    assert "output: error 1, allowed 0" in other


def test_the_page_of_a_model():
    model = {"case": "net:build", "mode": "model", "shape": ""}
    rows = [
        row(CASE, "eager", norm_share=0.2, activation_share=0.3, kept_bytes=100_000_000, **model),
        row(
            CASE,
            "fuse",
            speedup=1.25,
            speedup_low=1.2,
            speedup_high=1.3,
            norms="3 fused: relu | 1 replaced: so",
            max_error=2e-7,
            **model,
        ),
        row(CASE, "lean", status="wrong", microseconds=None, reason="it is off", **model),
        row(CASE, "fold", speedup=1.5, speedup_low=1.4, speedup_high=1.6, **model | {"mode": "model inference"}),
    ]
    text = page(rows)
    assert "The training step of net:build" in text
    assert "Were the norms free, the step would be 1.25 times as fast; with activations and sums 2.00 times." in text
    assert "2 cases timed; 1 of ours broke the tolerance: net:build." in text
    for word in ("100.0 MB", "by fold", "3 fused: relu", "1 replaced: so", "it is off", "as given: 2.0e-07"):
        assert word in text
    assert "Every case" not in text


def test_a_folder_gets_rows_and_page_and_a_file_the_rows(tmp_path):
    rows = some_rows()
    output.check(tmp_path / "out")
    assert output.write(rows, tmp_path / "out") == tmp_path / "out" / "index.html"
    assert read(tmp_path / "out" / "bench.csv") == rows
    assert "<html" in (tmp_path / "out" / "index.html").read_text("utf-8")
    output.check(tmp_path / "new" / "rows.csv")
    assert output.write(rows, tmp_path / "new" / "rows.csv") == tmp_path / "new" / "rows.csv"
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "rows.csv"]
    with pytest.raises(ArgumentError, match=r"neither a \.csv file nor a folder"):
        output.check(tmp_path / "page.html")


def test_the_picture_is_drawn_from_rows_alone():
    drawn = script(ROOT / "docs" / "figures" / "cpu.py").drawn
    rows = some_rows()
    text = drawn(rows)
    root = ElementTree.fromstring(text)
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    dots = root.findall(".//svg:circle", namespace)
    assert len(dots) == sum(row.contender != "batchnorm" for row in rows)
    words = root.findtext("svg:desc", namespaces=namespace)
    assert "norm + activation, contiguous: 3.0 by torch eager, 30.0 by torch.compile" in words
    assert drawn(rows) == text
    assert drawn(some_rows()[:2]) != text


def test_the_script_goes_on_where_it_was_and_mixes_no_machines(tmp_path, monkeypatch, capsys):
    cpu = script(ROOT / "benchmarks" / "cpu.py")
    path = tmp_path / "rows.csv"
    words = ["--csv", str(path), "--rounds", "2", "--peers", "eager"]
    assert cpu.main([*words, "--cases", "2x8,norm,float32"]) == 0
    first = read(path)
    assert [row.contender for row in first] == ["batchnorm", "eager"]
    assert path.with_suffix(".svg").exists()
    measured = []
    real = cpu.measure_all

    def watched(cases, *rest):
        measured.append([case.name for case in cases])
        return real(cases, *rest)

    monkeypatch.setattr(cpu, "measure_all", watched)
    assert cpu.main([*words, "--cases", "2x8,norm"]) == 0
    assert measured == [["2x8/norm/contiguous/bfloat16", "2x8/norm/contiguous/float16"]]
    assert [row for row in read(path) if row.dtype == "float32"] == first
    assert cpu.main([*words, "--cases", "2x8,norm,float32", "--fresh"]) == 0
    assert measured[1] == ["2x8/norm/contiguous/float32"]
    assert len(read(path)) == 6
    assert cpu.main([*words, "--draw"]) == 0
    assert len(measured) == 2
    rows = [replace(each, environment=replace(each.environment, processor="another")) for each in read(path)]
    write(rows, path)
    with pytest.raises(ArgumentError, match="the rows that are there have processor 'another'"):
        cpu.main([*words, "--cases", "2x8,norm"])
    capsys.readouterr()
