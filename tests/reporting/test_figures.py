"""Pictures of runs: they show what was recorded, nothing overlaps, and bad folders end in one sentence."""

import itertools
import json
import os
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from famus_hf.cli import plot as plot_run
from famus_hf.reporting.figures.curves import draw_accuracy, draw_division, draw_meta_set
from famus_hf.reporting.figures.meta_gradient import draw_gradient_quality, quality_of
from famus_hf.reporting.figures.run_records import RunRecords, read_run
from famus_hf.reporting.figures.runs import PICTURES, draw_runs
from famus_hf.reporting.figures.stage_times import draw_stage_times, seconds_of_parts
from famus_hf.reporting.figures.style import SETTINGS
from famus_hf.reporting.figures.summary import summary
from famus_hf.reporting.figures.weights import clean_above_mean, draw_clean_weights, draw_weights
from famus_hf.reporting.model_card import metrics_of, recorded_accuracies
from famus_hf.reporting.page import row_of_method
from famus_hf.reporting.tables import format_mean, format_notes, format_table
from famus_hf.reporting.true_accuracy import in_words
from famus_hf.storage.diagnostic_tables import SCHEMAS


def run_with(name="ours", accuracies=(), seconds=1.0, **tables):
    """A run that was evaluated after each tenth step."""
    log = [
        {"step": 10 * place, "eval_accuracy": value, "train_seconds": place * seconds}
        for place, value in enumerate(accuracies, 1)
    ]
    frames = {table: pa.Table.from_pylist(rows, SCHEMAS[table]).to_pandas() for table, rows in tables.items()}
    return RunRecords(name, log, {}, frames)


def records_of(folder):
    return [read_run(folder / name, words) for name, words in
            (("own-plain", "plain"), ("own-mw-net", "MW-Net"), ("own", "FaMUS"))]  # fmt: skip


def test_every_picture_that_the_runs_have_recorded_is_drawn_twice_the_same(compared_runs, tmp_path):
    """PNG with more than a few colours, SVG without any reference to the outside; those of other kinds of runs not."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "division.png").write_text("of an earlier call")
    drawn = draw_runs(records_of(compared_runs), tmp_path / "a")
    assert set(drawn) == set(PICTURES) - {"meta_set", "division"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {f"{n}.{k}" for n in drawn for k in ("png", "svg")}
    for name in drawn:
        with Image.open(tmp_path / "a" / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 20, name
        references = [
            value
            for element in ElementTree.parse(tmp_path / "a" / f"{name}.svg").iter()
            for key, value in element.attrib.items()
            if key.endswith("href")
        ]
        assert all(value.startswith(("#", "data:")) for value in references), name
    draw_runs(records_of(compared_runs), tmp_path / "b", names=["accuracy", "layers"])
    for name in ("accuracy.png", "accuracy.svg", "layers.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def out_of_place(figure):
    """Pairs of visible texts that lie over each other, and texts that reach out of the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axis = [own for axes in figure.axes for own in (axes.xaxis, axes.yaxis)]
    ticks = [(tick, *sorted(own.get_view_interval())) for own in axis for tick in own.get_major_ticks()]
    outside = {id(tick.label1) for tick, low, high in ticks if not low <= tick.get_loc() <= high}  # these aren't drawn
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    drawn = [text for text in texts if id(text) not in outside and (text.axes is None or text.axes.get_visible())]
    inside = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in drawn]
    cut_off = [
        text for text, box in inside
        if min(box.x0, box.y0) < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]  # fmt: skip
    return cut_off + [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(inside, 2)
        if min(a.width, b.width) > 1 and min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


@pytest.mark.parametrize("picture", [name for name in PICTURES if name not in ("meta_set", "division")])
def test_no_text_lies_over_another_or_is_cut_off(compared_runs, picture):
    runs = records_of(compared_runs)
    names = (*(run.name for run in runs), "a method with a long name", "the fifth of them")
    groups = {name: [run] for name, run in zip(names, [*runs, *runs[1:]], strict=True)}
    with rc_context(SETTINGS):
        assert out_of_place(PICTURES[picture][0](groups)) == []


def test_text_out_of_place_would_be_found():
    with rc_context(SETTINGS):
        figure = PICTURES["accuracy"][0]({"ours": [run_with(accuracies=(0.5, 0.6))]})
        figure.axes[0].text(0.5, 0.5, "one", transform=figure.axes[0].transAxes)
        figure.axes[0].text(0.5, 0.5, "two", transform=figure.axes[0].transAxes)
        figure.text(0.98, 0.01, "three and four")
        assert out_of_place(figure) == ["three and four", ("one", "two")]


def test_runs_of_one_name_are_a_mean_with_a_band_at_the_steps_that_all_have():
    seeds = [run_with("ours", (0.5, 0.7), 2.0), run_with("ours", (0.6, 0.9, 0.95), 4.0)]
    by_step, by_time = draw_accuracy({"ours": seeds, "theirs": [run_with("theirs", (0.4,))]}).axes
    ours, theirs = by_step.lines
    assert list(ours.get_xdata()) == [10, 20] and ours.get_ydata() == pytest.approx([55, 80])
    assert list(theirs.get_xdata()) == [10] and theirs.get_marker() == "o", "a single point would not be seen"
    band = by_step.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(55 - 5 * 2**0.5) and band.max() == pytest.approx(80 + 10 * 2**0.5)
    assert by_time.lines[0].get_xdata() == pytest.approx([3, 6])
    assert by_step.get_ylabel() == "test accuracy [%]" and by_time.get_xlabel() == "training time [s]"


def test_the_parts_of_a_step_add_up_to_it():
    """Without what the look at the meta gradient itself takes; of two networks both are in it."""
    seconds = {
        ("", "data"): 1.0, ("", "step"): 20.0, ("", "optimizer"): 0.5, ("model_a", "forward"): 2.0,
        ("model_b", "forward"): 3.0, ("model_a", "data"): 0.25, ("model_a", "derivative"): 4.0,
        ("model_a", "validation backward"): 1.0, ("model_a", "diagnostics"): 7.0,
    }  # fmt: skip
    rows = [
        {"step": step, "network": network, "stage": stage, "seconds": scale * value}
        for step, scale in ((10, 1), (20, 1), (30, 50))
        for (network, stage), value in seconds.items()
    ]
    run = run_with(stage_times=rows)
    found = seconds_of_parts(run.table("stage_times"))
    assert sum(found.values()) == pytest.approx(1 + 20 - 7)
    assert found["data"] == 1.25 and found["forward (Virtual and Actual)"] == 5 and found["Meta-Train, backward"] == 5
    assert found["rest"] == pytest.approx(20 - 0.25 - 0.5 - 5 - 5 - 7)
    (axes,) = draw_stage_times({"ours": [run]}).axes
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(14_000)


def gradient_rows(step, network, sampled, exact):
    """What `statistics` and `comparison` would record of these draws, each of shape (D, P)."""
    rows = []
    for kind, draws, layers in (("sampled", sampled, 1), ("exact", exact, 2)):
        mean = draws.mean(0)
        rows += [{"step": step, "network": network, "kind": kind, "draw": number, "layers": layers,
                  "norm": np.linalg.norm(draw), "total": draw.sum()} for number, draw in enumerate(draws)]  # fmt: skip
        rows.append({"step": step, "network": network, "kind": kind, "layers": layers, "norm": np.linalg.norm(mean),
                     "variance": draws.var(0, ddof=1).sum()})  # fmt: skip
    means = sampled.mean(0), exact.mean(0)
    rows[len(sampled)] |= {
        "cosine": means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]),
        "bias": np.linalg.norm(means[0] - means[1]) / np.linalg.norm(means[1]),
    }
    return rows


def test_a_gradient_that_is_merely_smaller_has_no_smaller_relative_deviation():
    exact = np.random.default_rng(0).normal(size=(4, 3)) + 2
    run = run_with(meta_gradient=gradient_rows(5, "", exact / 4, exact))
    found = quality_of(run).loc[5]
    assert found["cosine"] == pytest.approx(1) and found["bias"] == pytest.approx(0.75)
    assert found["spread"] == pytest.approx(0.25) and found["relative_spread"] == pytest.approx(1)
    axes = draw_gradient_quality({"ours": [run], "all layers": [run_with()]}).axes
    assert [len([line for line in own.lines if len(line.get_xdata()) == 1]) for own in axes] == [1, 1, 1, 1]


def test_where_all_layers_are_on_there_is_nothing_to_compare():
    exact = np.ones((2, 3))
    rows = [{**row, "layers": 2} for row in gradient_rows(5, "", exact, exact)]
    assert draw_gradient_quality({"ours": [run_with(meta_gradient=rows)]}) is None


def test_histograms_show_the_shares_of_the_bins_that_were_recorded():
    rows = [
        {"step": step, "network": "", "kind": kind, "x": x, "value": float(count)}
        for step in (10, 20, 30)
        for kind, counts in (("clean", (1, 3)), ("wrong", (2, 0)))
        for x, count in zip((0.0, 0.5), counts, strict=True)
    ]
    axes = draw_weights({"ours": [run_with(weights=rows)]}).axes
    assert [own.get_title() for own in axes] == ["ours, step 10", "ours, step 30"]
    for own in axes:
        outlines = [patch.get_data() for patch in own.patches if not patch.get_fill()]
        assert [list(data.values) for data in outlines] == [[0.25, 0.75], [1, 0]]
        assert all(list(data.edges) == [0, 0.5, 1] for data in outlines)


def weight_rows(counts, edges=(0.0, 1.0, 2.0)):
    return [
        {"step": 9, "network": "", "kind": kind, "x": x, "value": float(count)}
        for kind, own in counts.items()
        for x, count in zip(edges, own, strict=True)
    ]


def test_methods_are_compared_by_shares_of_the_mean_weight():
    """The mean of all is (4·0.5 + 2·1.5 + 4·2.5)/10 = 1.5; half of the right labels are in bins from there on."""
    counts = {"clean": (2, 0, 4), "wrong": (2, 2, 0)}
    runs = {
        "ours": [run_with(weights=weight_rows(counts))],
        "theirs": [run_with("theirs", weights=weight_rows(counts))],
    }
    (axes,) = draw_clean_weights(runs).axes
    assert axes.lines[0].get_xdata() == pytest.approx([0, 1 / 1.5, 2 / 1.5, 2])
    assert axes.lines[0].get_ydata() == pytest.approx([1, 2 / 3, 2 / 3, 0])
    assert clean_above_mean(runs["ours"][0]) == pytest.approx(100 * 4 / 6)


def test_the_summary_has_mean_and_deviation_over_the_runs_of_a_method():
    exact = np.random.default_rng(0).normal(size=(4, 3)) + 2
    ours = [run_with("ours", (0.5, 0.75, 0.7), meta_gradient=gradient_rows(5, "", exact / 4, exact)),
            run_with("ours", (0.5, 0.6))]  # fmt: skip
    head, _, first, second = summary({"ours": ours, "theirs": [run_with("theirs", (0.4,))]}).splitlines()
    assert (
        head == "| | last accuracy, % | best, % | cosine | distance | ratio of deviations | of relative ones | runs |"
    )
    cells = "1.00 (of 1) | 0.75 (of 1) | 0.25 (of 1) | 1.00 (of 1)"
    assert first == f"| ours | 65.0 ± 7.1 | 67.5 ± 10.6 | {cells} | 2 |"
    assert second == "| theirs | 40.0 | 40.0 | – | – | – | – | 1 |"


def test_a_table_has_last_before_best():
    row = {
        "method": "ours", "train_seconds_per_step": 0.25, "eval_accuracy": 0.5, "best_eval_accuracy": 0.75,
        "realised_noise_rate": 0.125, "mean_active_layers": 4.0,
    }  # fmt: skip
    head, _, line = format_table([row]).splitlines()
    assert head.split() == ["method", "last", "acc.", "best", "acc.", "s/step", "noise", "layers", "on"]
    assert line.split() == ["ours", "50.00%", "75.00%", "0.2500", "12.5%", "4.00"]


def test_where_test_labels_may_be_wrong_accuracies_are_agreements_beside_an_estimate():
    row = {
        "method": "ours", "train_seconds_per_step": 0.25, "eval_accuracy": 0.59, "best_eval_accuracy": 0.625,
        "realised_noise_rate": None, "mean_active_layers": 4.0, "seconds_per_epoch": 1.0, "test_labels_known": False,
        "estimated_true_accuracy": 0.78, "estimated_true_accuracy_interval": [0.72, 0.84],
        "estimated_test_noise_rate": 0.25,
    }  # fmt: skip
    head, line, values = format_table([row]).splitlines()
    assert head.split() == [
        *["method", "last", "agr.", "best", "agr.", "true", "acc.", "s/step", "noise", "layers", "on"]
    ]
    assert values.split() == ["ours", "59.00%", "62.50%", "78.0%", "0.2500", "–", "4.00"]
    assert len(head) == len(line) == len(values)
    sentence = (
        "59.0 % agreement with test labels of which about 25 % are wrong; the true accuracy is about 78.0 % "
        "(estimated, 72 to 84 %)"
    )
    others = [{**row, "method": name, "eval_accuracy": 0.5} for name in ("plain", "forward correction")]
    notes = format_notes([*others, row])
    assert f"ours: {sentence}" in notes and "+9.0 points of agreement with the test labels beside the honest" in notes
    assert in_words({**row, "test_labels_known": True}) == in_words({"eval_accuracy": 0.5}) == ""


def test_below_a_table_epochs_are_in_those_of_plain_training():
    rows = [{"method": name, "seconds_per_epoch": seconds} for name, seconds in (("plain", 4.0), ("ours", 10.0))]
    assert format_notes(rows) == "seconds an epoch: plain 4.00; ours 10.00 (2.50 × plain)"


def test_means_have_the_deviation_of_a_sample():
    assert format_mean([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00", "divided by the number of runs it would be 0.82"
    assert format_mean([1.5]) == "1.5"


def test_accuracy_on_the_meta_set_is_none_on_the_test_set():
    log = [
        {"step": 1, "eval_meta_accuracy": 0.9, "eval_test_accuracy": 0.5, "eval_validation_accuracy": 0.8},
        {"step": 2, "eval_accuracy": 0.6, "eval_meta_accuracy": 0.95},
    ]
    assert RunRecords("ours", log).on_test_set("accuracy") == {1: 0.5, 2: 0.6}


def test_runs_that_have_not_ended_or_gave_no_figure_are_no_part_of_a_mean():
    ended, cut_off = run_with("ours", (0.5, 0.7)), replace(run_with("ours", (0.3,)), has_ended=False)
    groups = {"ours": [ended, cut_off, run_with("ours")], "theirs": [replace(cut_off, results={"eval_accuracy": 1.0})]}
    _, _, ours, theirs = summary(groups).splitlines()
    assert ours == "| ours | 70.0 | 70.0 | 1 (1 more not ended) |"
    assert theirs == "| theirs | 30.0 | 30.0 | 1, not ended |", "results in its folder are of an earlier run"


def test_a_run_without_an_end_is_known_by_its_newest_state(tmp_path):
    state = {"log_history": [{"step": 4, "eval_accuracy": 0.5}], "global_step": 4, "max_steps": 8}
    for name in ("", "checkpoint-4", "checkpoint-8"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(state))
    assert not read_run(tmp_path).has_ended
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text(json.dumps({**state, "global_step": 8}))
    os.utime(tmp_path / "checkpoint-4" / "trainer_state.json", (0, 0))
    assert read_run(tmp_path).has_ended
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert read_run(tmp_path).has_ended, "it stopped early"
    os.utime(tmp_path / "trainer_state.json", (1, 1))
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text(json.dumps(state))
    assert not read_run(tmp_path).has_ended, "a later run in the folder of an earlier one"


def test_a_method_looks_the_same_in_all_pictures(tmp_path):
    """Though the first one has weighed nothing, and so is missing from some of them."""
    by_class = {"step": 9, "network": "", "kind": "class", "x": 0.0, "value": 0.5}
    rows = [*weight_rows({"clean": (1, 3, 2), "wrong": (2, 1, 0)}), by_class]
    runs = [
        run_with(name, (0.5, 0.6), **({} if name == "plain" else {"weights": rows})) for name in ("plain", "a", "b")
    ]
    groups = {run.name: [run] for run in runs}
    accuracy, weights, classes = (
        PICTURES[name][0](groups) for name in ("accuracy", "clean_weights", "weight_by_class")
    )
    by_accuracy = [(line.get_color(), line.get_linestyle()) for line in accuracy.axes[0].lines]
    assert [(line.get_color(), line.get_linestyle()) for line in weights.axes[0].lines[:2]] == by_accuracy[1:]
    assert [line.get_color() for line in classes.axes[0].lines[:2]] == [colour for colour, _ in by_accuracy[1:]]


def test_axes_name_their_units(compared_runs):
    figure = PICTURES["meta_gradient"][0]({run.name: [run] for run in records_of(compared_runs)})
    assert {axes.get_ylabel() for axes in figure.axes} - {""} == {"sum of the meta gradient\n[norms of the exact one]"}


@pytest.mark.parametrize("key", ["eval_accuracy", "eval_test_accuracy"])
def test_where_the_best_checkpoint_is_loaded_pictures_page_and_card_agree(key):
    """The evaluation at the end is of the weights of step 10, and takes the place of no record of step 20."""
    log = [{"step": 10, key: 0.942}, {"step": 20, key: 0.928}, {"step": 20, "eval_accuracy": 0.942}]
    run = RunRecords("ours", log, {"eval_accuracy": 0.942})
    assert run.on_test_set("accuracy") == recorded_accuracies(log) == {10: 0.942, 20: 0.928}
    assert summary({"ours": [run]}).splitlines()[2] == "| ours | 94.2 | 94.2 | 1 |"
    assert {row_of_method(run)[name] for name in ("last", "best")} == {"94.2 %"}
    args, state = SimpleNamespace(load_best_model_at_end=True), SimpleNamespace(log_history=log, best_global_step=10)
    assert metrics_of(args, state) == {"last": 0.942, "best": 0.942}
    args.load_best_model_at_end = False
    assert metrics_of(args, state) == {"last": 0.928, "best": 0.942}


def test_meta_sets_and_divisions_have_a_panel_for_each_figure():
    log = [{"step": 5, "meta_set_size": 40.0, "meta_set_purity": 0.9, "labelled_size": 30.0, "unlabelled_weight": 2.0}]
    groups = {"ours": [RunRecords("ours", log)]}
    assert [axes.get_ylabel() for axes in draw_meta_set(groups).axes] == [
        "examples in the meta set", "right labels in it [%]"
    ]  # fmt: skip
    shown = [axes for axes in draw_division(groups).axes if axes.get_visible()]
    assert [axes.lines[0].get_ydata()[0] for axes in shown] == [30, 2]
    assert draw_meta_set({"other": [RunRecords("other", [{"step": 5, "loss": 1.0}])]}) is None


def test_runs_of_one_method_are_seeds_or_told_apart_by_their_folders(tmp_path):
    def names(*runs):
        folders = [tmp_path / name for name, _ in runs]
        records = [RunRecords("FaMUS", [], {"seed": seed}) for _, seed in runs]
        return [run.name for run in plot_run.named_apart(records, folders)]

    assert names(("a", 1), ("b", 2)) == ["FaMUS", "FaMUS"]
    assert names(("a", 1), ("b", 1)) == ["FaMUS (a)", "FaMUS (b)"]


def test_odd_names_and_numbers_that_are_none_are_drawn(tmp_path):
    log = [{"step": 1, "eval_accuracy": float("nan")}, {"step": 2, "eval_accuracy": True}, {"eval_accuracy": 0.5},
           {"step": 3, "eval_accuracy": 0.5}]  # fmt: skip
    run = RunRecords("$^$ <b>&|", log)
    assert run.on_test_set("accuracy") == {3: 0.5}
    assert list(draw_runs([run], tmp_path)) == ["accuracy"]


def damaged(folder, name):
    """A copy of a run with one file spoilt."""
    if name == "layers.parquet":
        (folder / "diagnostics" / name).write_bytes(b"no parquet")
    elif name == "weights.parquet":
        pq.write_table(pa.table({"a": [1]}), folder / "diagnostics" / name)
    else:
        (folder / name).write_text("[1")


@pytest.mark.parametrize(
    "name, words",
    [
        ("trainer_state.json", "can't be read"),
        ("all_results.json", "can't be read"),
        ("layers.parquet", "can't be read"),
        ("weights.parquet", "has the columns a: it is no table of weights"),
    ],
)
def test_damaged_records_are_refused_in_one_sentence(compared_runs, tmp_path, name, words):
    shutil.copytree(compared_runs / "own", tmp_path / "run")
    damaged(tmp_path / "run", name)
    with pytest.raises(ValueError, match=words):
        read_run(tmp_path / "run")


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no records of a run .*: give the --output_dir of one"):
        read_run(tmp_path)


def test_a_run_that_was_cut_off_is_drawn_as_far_as_its_newest_checkpoint(compared_runs, tmp_path):
    shutil.copytree(compared_runs / "own", tmp_path / "run")
    (tmp_path / "run" / "all_results.json").unlink()
    (tmp_path / "run" / "checkpoint-8").mkdir()
    (tmp_path / "run" / "trainer_state.json").rename(tmp_path / "run" / "checkpoint-8" / "trainer_state.json")
    found = read_run(tmp_path / "run")
    assert found.name == "run" and found.log == read_run(compared_runs / "own").log


def test_command_line_draws_what_is_asked_for_and_says_what_is_wrong(compared_runs, tmp_path, capsys):
    run = str(compared_runs / "own")
    plot_run.main([run, "--out", str(tmp_path), "--formats", "svg", "--pictures", "layers"])
    assert [path.name for path in tmp_path.iterdir()] == ["layers.svg"]
    assert "layers.{svg}: Share of" in capsys.readouterr().out
    for flags, words in (
        ([str(tmp_path), "--out", str(tmp_path)], "holds no records of a run"),
        ([run, run, "--out", str(tmp_path), "--names", "a"], "--names has 1 names for 2 runs"),
        ([run, "--out", str(tmp_path), "--pictures", "division"], "have recorded nothing of these"),
    ):
        with pytest.raises(SystemExit) as refused:
            plot_run.main(flags)
        error = capsys.readouterr().err
        assert refused.value.code == 2 and error.startswith("plot_run.py: error: ") and words in error


def test_the_card_of_a_compared_run_shows_the_runs_side_by_side(compared_runs):
    text = (compared_runs / "own" / "README.md").read_text()
    for name in ("accuracy", "stage_times", "meta_gradient", "layers", "weight_curves", "suspect_labels"):
        assert f"](figures/{name}.png)" in text and (compared_runs / "own" / "figures" / f"{name}.png").is_file()
    assert "figures/division.png" not in text and "figures/test_loss.png" not in text
    plain = pd.DataFrame(read_run(compared_runs / "own-plain").log)
    assert plain["train_seconds"].is_monotonic_increasing and (plain["train_seconds"] > 0).all()


def test_settings_of_matplotlib_stay_as_they_are(tmp_path):
    before = dict(matplotlib.rcParams)
    draw_runs([run_with(accuracies=(0.5, 0.6))], tmp_path)
    assert dict(matplotlib.rcParams) == before
