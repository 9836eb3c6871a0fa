"""famus-hf compare: several methods on the same labels, resumable, with a table, a verdict and a page."""

import csv
import json
import re
import resource

import numpy as np
import pytest
from scipy.stats import ttest_rel

from famus_hf.cli import compare
from famus_hf.cli import jobs as jobs_of_cli
from famus_hf.cli.arguments import parse_arguments
from famus_hf.cli.config_files import methods_of_recipe, recipe_names
from famus_hf.cli.methods import METHODS
from famus_hf.cli.run_setup import method_name
from famus_hf.data.labels.noise_file import read_noise_file, write_noise_file
from famus_hf.errors import SettingsError
from famus_hf.reporting.comparison import Comparison, holm
from famus_hf.reporting.figures.comparison import draw_accuracy_by_time, pareto_front
from tests.helpers.jobs import InThisProcess

SMALL = [
    "--dataset_name", "digits", "--noise", "0.4", "--max_train_samples", "200", "--max_eval_samples", "60",
    "--per_device_train_batch_size", "20", "--max_steps", "6", "--use_cpu", "--save_steps", "3", "--save_strategy",
    "steps", "--eval_strategy", "steps", "--eval_steps", "3",
]  # fmt: skip
SEEDS, RUNS = ["--seeds", "3", "4"], ["--methods", "gce", "dividemix"]


def run(folder, *flags):
    compare.main([*SMALL, *SEEDS, *RUNS, "--output_dir", str(folder), *flags])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a comparison. A process of its own trained GCE with seed 3, while this one held a gigabyte."""
    folder, held = tmp_path_factory.mktemp("compared"), np.ones(2**27)
    run(folder, "--methods", "gce", "--seeds", "3")
    assert held.all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("famus_hf.cli.jobs.ProcessPoolExecutor", InThisProcess)
        run(folder)
    return folder


# ---- Methods by name ----


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_flags(name):
    method = METHODS[name]
    model_args, data_args, args = parse_arguments(["--method", name])
    parsed = {**vars(model_args), **vars(data_args), **vars(args)}
    for flag, value in {**method.usual, **method.settings}.items():
        assert str(parsed[flag]).lower() in (value, f"{value}.0"), flag
    assert method_name(model_args, args) == method.title


def test_titles_and_names_are_different():
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_what_a_method_usually_has_may_be_said_and_what_makes_it_not(tmp_path, capsys):
    assert parse_arguments(["--method", "mixup", "--mixup_alpha", "8"])[2].mixup_alpha == 8
    with pytest.raises(SettingsError, match="--method gce is --base_loss gce: leave --base_loss out"):
        parse_arguments(["--method", "gce", "--base_loss", "sce"])
    with pytest.raises(SettingsError, match="method 'gcf' is unknown: choose one of plain, "):
        parse_arguments(["--method", "gcf"])
    config = tmp_path / "gce.yaml"
    config.write_text("method: gce\ngce_q: 0.5\n")
    _, _, args = parse_arguments(["--config", str(config)])
    assert (args.base_loss, args.gce_q) == ("gce", 0.5)
    model_args, _, args = parse_arguments(["--config", str(config), "--method", "elr"])
    assert (model_args.method, args.base_loss, args.elr_weight) == ("elr", "ce", 3)


def test_of_flags_that_are_given_twice_the_last_one_counts(tmp_path):
    for name in ("gce", "sce"):
        (tmp_path / f"{name}.yaml").write_text(f"method: {name}\n")
    configs = [f"--config={tmp_path / f'{name}.yaml'}" for name in ("gce", "sce")]
    for flags in (["--method", "gce", "--method=sce"], configs, [*configs[:1], "--method=elr", "--method", "sce"]):
        model_args, _, args = parse_arguments(flags)
        assert (model_args.method, args.base_loss) == ("sce", "sce")


RECIPES = [name for name in recipe_names() if name.startswith("table")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_methods_of_a_recipe_go_with_its_settings(recipe):
    own, _, of_recipe = parse_arguments(["--recipe", recipe])
    methods = methods_of_recipe(recipe)
    assert methods[0] == "plain" and len(methods) >= 3
    for name in methods:
        model_args, _, args = parse_arguments(["--recipe", recipe, "--method", name])
        assert method_name(model_args, args) == METHODS[name].title
        assert (model_args.backbone, args.learning_rate) == (own.backbone, of_recipe.learning_rate)
    assert model_args.two_networks == own.two_networks, "the last one is the recipe's own"
    for setting in ("meta_learner", "meta_optim", "meta_learning_rate", "expected_layers", "mixup_alpha", "base_loss"):
        assert getattr(args, setting) == getattr(of_recipe, setting)


STARTED = {  # recipe → what else a hundred digits ask for
    "table1-mwnet-cifar10": ["--num_meta", "20"],
    "table2-mlc-cifar10": ["--num_meta", "20", "--plain_warmup_epochs", "1"],
    "table8-cifar10-ce": ["--num_meta", "20", "--imbalance_factor", "2"],
}
SLOW = {
    "table1-l2r-cifar10": ["--num_meta", "20"],
    "table5-cifar10-sym40": ["--plain_warmup_epochs", "1"],
    "table6-webvision": ["--plain_warmup_epochs", "1"],
    "table7-cnwl-40": ["--plain_warmup_epochs", "1", "--dataset_config_name", ""],
    "table8-cifar10-ldam": ["--num_meta", "20", "--imbalance_factor", "2"],
}


@pytest.mark.parametrize(
    "recipe, own", [*STARTED.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW.items())]
)
def test_a_recipe_trains_all_rows_of_its_table(recipe, own, tmp_path, in_this_process):
    compare.main([
        "--recipe", recipe, "--seeds", "0", "--output_dir", str(tmp_path), "--dataset_name", "digits", "--backbone",
        "tiny", "--image_size", "8", "--use_cpu", "--max_train_samples", "160", "--max_eval_samples", "20",
        "--per_device_train_batch_size", "40", "--max_steps", "-1", "--num_train_epochs", "2", "--lr_milestones", "1",
        "--label_report", "false", *own,
    ])  # fmt: skip
    lines = list(csv.DictReader((tmp_path / "comparison.csv").open(encoding="utf-8")))
    assert {line["method"] for line in lines} == set(methods_of_recipe(recipe))
    assert all(float(line["train_seconds"]) > 0 and float(line["eval_accuracy"]) <= 1 for line in lines)


def test_a_method_takes_the_place_of_a_recipes():
    recipe = ["--recipe", "table5-cifar10-sym40"]
    model_args, data_args, args = parse_arguments([*recipe, "--method", "plain"])
    assert (model_args.two_networks, args.meta_learner, args.mixup_alpha) == (False, "none", None)
    assert (data_args.noise, args.meta_set, args.num_train_epochs) == (0.4, "pseudo-clean", 300)
    _, _, args = parse_arguments(["--recipe", "table1-mwnet-cifar10", "--method", "mw-net"])
    assert (args.layer_sampler, args.meta_optim, args.gradient_match_weight) == ("all", "sgd", None)
    _, _, args = parse_arguments(["--recipe", "table1-mwnet-cifar10", "--method", "famus"])
    assert (args.layer_sampler, args.gradient_match_weight) == ("learned", 0.1)


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_meta", "30"),
        ("meta_dir", "a"),
        ("meta_dataset_name", "b"),
        ("meta_from", "c"),
        ("sample_weight_column", "d"),
    ],
)
def test_a_method_leaves_what_a_file_says_of_the_data(tmp_path, name, value):
    config = tmp_path / "run.yaml"
    config.write_text(f"{name}: {value}\nmeta_learner: soft\n")
    _, data_args, args = parse_arguments(["--config", str(config), "--method", "gce"])
    assert (str({**vars(args), **vars(data_args)}[name]), args.meta_learner) == (value, "none")


# ---- The comparison ----


def test_all_methods_have_the_same_labels_and_another_seed_has_others(compared):
    files = {path.parent.name: read_noise_file(path) for path in compared.glob("*/noise.parquet")}
    assert set(files) == {f"{name}-{seed}" for name in ("gce", "dividemix") for seed in (3, 4)}
    for seed in (3, 4):
        labels = [file.labels.tolist() for name, file in files.items() if name.endswith(str(seed))]
        assert labels[0] == labels[1]
    assert files["gce-3"].labels.tolist() != files["gce-4"].labels.tolist()
    batches = {name: json.loads((compared / name / "flags.json").read_text())[-1] for name in files}
    assert batches["dividemix-3"] == "--per_device_train_batch_size=10" != batches["gce-3"]


def test_two_networks_that_choose_in_every_step_take_whole_batches(tmp_path):
    jobs = compare.jobs_of(*options_of(tmp_path, "--methods", "dividemix", "jocor", "--seeds", "3"))
    sizes = [job.flags[-1].removeprefix("--per_device_train_batch_size=") for job in jobs]
    assert sizes == ["10", "20"]


def test_it_leaves_table_csv_picture_and_page(compared, capsys):
    run(compared, "--show")
    printed = capsys.readouterr().out
    lines = re.findall(r"^\| (GCE|DivideMix) \| (.*) \|$", printed, re.MULTILINE)
    assert len(lines) == 2 and "ends highest" in printed
    with (compared / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        results = json.loads((compared / f"{row['method']}-{row['seed']}" / "all_results.json").read_text())
        assert float(row["eval_accuracy"]) == results["eval_accuracy"]
    page = (compared / "comparison.html").read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in page for name, _ in lines) and "data:image/png;base64," in page
    assert "://" not in page and "<script" not in page
    assert (compared / "accuracy_by_time.png").stat().st_size > 5000


def test_what_is_finished_is_not_trained_again_and_what_stopped_goes_on(compared, monkeypatch):
    trained = []
    monkeypatch.setattr(jobs_of_cli, "train_all", lambda runs, checkpoint, flags: [trained.append(checkpoint)])
    jobs = compare.jobs_of(*options_of(compared))
    assert all(job.results() is not None for job in jobs)
    results = compared / "gce-3" / "all_results.json"
    content = results.read_text()
    results.unlink()
    try:
        (missing,) = [job for job in jobs if job.results() is None]
        missing.train()
    finally:
        results.write_text(content)
    assert trained == [str(compared / "gce-3" / "checkpoint-6")]


def test_the_memory_of_a_run_is_its_own_and_not_that_of_what_started_it(compared):
    results = json.loads((compared / "gce-3" / "all_results.json").read_text())
    assert 100 < results["peak_memory_mb"] < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - 2**9


def options_of(folder, *flags):
    options, rest = compare.build_parser("compare").parse_known_args([*SMALL, *SEEDS, *RUNS, *flags])
    options.output_dir = folder
    return options, rest


@pytest.mark.parametrize("flag", ["--num_meta", "--meta_dir", "--meta_dataset_name", "--meta_from", "--noise_file"])
def test_where_trusted_examples_are_named_no_number_of_them_is_added(flag, monkeypatch):
    monkeypatch.setattr(compare, "load_data", lambda *settings: pytest.fail("the data are not needed"))
    flags = ["--dataset_name", "digits", flag, "30"]
    assert compare.with_number_of_trusted(flags) == flags


def test_other_flags_in_the_same_folder_are_refused(compared, capsys):
    with pytest.raises(SystemExit):
        run(compared, "--learning_rate", "0.3")
    assert "is of a run with other flags: give another --output_dir" in capsys.readouterr().err


def test_runs_on_other_labels_are_no_comparison(compared):
    jobs = compare.jobs_of(*options_of(compared))
    file = compared / "gce-3" / "noise.parquet"
    content, noise = file.read_bytes(), read_noise_file(file)
    write_noise_file(file, noise.index, (noise.labels + 1) % 10, noise.clean_labels, noise.metadata)
    try:
        with pytest.raises(SettingsError, match="trained on different examples or labels"):
            jobs_of_cli.check_same_labels(jobs)
    finally:
        file.write_bytes(content)
    jobs_of_cli.check_same_labels(jobs)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--methods"], "--methods names what is compared: choose of plain, "),
        (["--methods", "plain", "gcf"], "method 'gcf' is unknown"),
        (["--methods", "plain", "plain"], "--methods plain plain names one twice"),
        (["--seeds", "1", "1"], "--seeds 1 1 names one twice"),
        (["--seed", "1"], "--seed is no flag of a comparison"),
        (["--push_to_hub"], "--push_to_hub is no flag of a comparison"),
        (["--base_loss", "sce"], "--method gce is --base_loss gce"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded_or_trained(tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.setattr(compare, "load_data", lambda *settings: pytest.fail("the data are not needed"))
    with pytest.raises(SystemExit):
        run(tmp_path / "none", *flags)
    assert words in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_run_that_fails_does_not_end_the_others(tmp_path, capsys, in_this_process):
    untrusted = ["--num_meta", "0", "--meta_set", "pseudo-clean", "--seeds", "3", "--methods", "plain", "glc"]
    with pytest.raises(SystemExit):
        run(tmp_path, *untrusted)
    printed = capsys.readouterr()
    assert re.search("glc, seed 3, failed: .*trusted", printed.err)
    assert "1 of 2 runs failed" in printed.err and "| plain |" in printed.out


# ---- Figures ----


def results(method, seed, last, seconds=1.0):
    return method, {
        "method": method.upper(), "seed": seed, "eval_accuracy": last, "best_eval_accuracy": last + 0.01,
        "train_seconds": seconds,
    }  # fmt: skip


def test_ranks_and_paired_tests():
    a, b, c = [0.80, 0.85, 0.90], [0.79, 0.83, 0.89], [0.80, 0.80, 0.95]
    runs = [
        results(name, seed, last) for name, each in zip("abc", (a, b, c), strict=True) for seed, last in enumerate(each)
    ]
    comparison = Comparison.of(runs)
    assert [row.method for row in comparison.rows] == ["a", "c", "b"]
    assert comparison.mean_ranks() == pytest.approx(
        {"a": (1.5 + 1 + 2) / 3, "c": (1.5 + 3 + 1) / 3, "b": (3 + 2 + 3) / 3}
    )
    expected = holm({"b": ttest_rel(a, b).pvalue, "c": ttest_rel(a, c).pvalue})
    assert comparison.p_values() == pytest.approx(expected)
    assert comparison.verdict.startswith("A ends highest (85.0 ± 5.0 %).") and comparison.verdict.endswith(": C, B.")


def test_one_seed_tells_nothing_from_chance():
    comparison = Comparison.of([results("a", 0, 0.9), results("b", 0, 0.8)])
    assert comparison.p_values() == {} and "One seed can't tell" in comparison.verdict


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_the_front_holds_what_nothing_beats_in_both():
    points = [("slow", 9.0, 0.95), ("bad", 5.0, 0.7), ("quick", 1.0, 0.8), ("same", 1.0, 0.79), ("middle", 4.0, 0.9)]
    assert [name for name, *_ in pareto_front(points)] == ["quick", "middle", "slow"]


def test_more_methods_than_markers_are_numbers_and_one_far_below_stands_at_the_edge():
    points = [(f"method {n}", 10.0 + n, 0.9 - n / 100) for n in range(1, 14)] + [("broken", 10.0, 0.1)]
    figure = draw_accuracy_by_time(points)
    axes = figure.axes[0]
    shown = {text.get_text(): (*text.get_position(), text.get_fontweight()) for text in axes.texts}
    assert list(shown) == [*(str(number) for number in range(1, 14)), "14↓"]
    assert shown["1"] == (11.0, pytest.approx(89), "bold") and shown["2"] == (12.0, pytest.approx(88), "normal")
    assert shown["14↓"][:2] == (10.0, pytest.approx(77)), "as low as the lowest of the others"
    assert figure.legends[0].get_texts()[13].get_text() == "14  broken"
    few = draw_accuracy_by_time([*points[:3], points[-1]])
    assert not few.axes[0].texts and len(few.legends[0].get_texts()) == 4
    assert few.axes[0].collections[-1].get_offsets().tolist() == [[10.0, pytest.approx(10)]], "where it is"
