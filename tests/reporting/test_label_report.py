"""Which labels are wrong: the score against brute force, the report of a run, its pictures, the script."""

import codecs
import json
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from experiments import compare_cleanlab
from PIL import Image

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, MWNet, build_backbone, load_noisy_dataset
from famus_hf.cli import label_report as label_report_script
from famus_hf.cli import run as run_famus
from famus_hf.cli.results import summary_of
from famus_hf.core.judgement import judge_by_both, judge_by_labels
from famus_hf.data.inputs.image_processors import default_image_processor
from famus_hf.hub.load import files_to_push
from famus_hf.metrics import AveragePrecision
from famus_hf.reporting.figures.label_report import draw_contact_sheet, draw_report
from famus_hf.reporting.figures.style import short_class
from famus_hf.reporting.label_report import class_names, details_of, label_report, save_report, verdict
from tests.helpers import clean_process
from tests.helpers.trainers import make_trainer

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ["cat", "dog", "owl"]


def test_the_most_suspect_example_comes_first():
    probabilities = np.array([[0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.34, 0.33, 0.33]])
    report = label_report(
        np.array([0, 0, 0]), probabilities, -np.log(probabilities[:, 0]), NAMES, index=[7, 8, 9],
        weights=np.array([0.1, 0.9, 0.5]), clean_labels=np.array([1, 0, 0]),
    )  # fmt: skip
    assert report["index"][:] == [7, 9, 8] and report["clean_label"][:] == [1, 0, 0]
    assert report["weight"][:] == pytest.approx([0.1, 0.5, 0.9])
    assert report.features["predicted_label"].int2str(report["predicted_label"][0]) == "dog"


def test_what_a_summary_estimates_is_the_share_of_wrong_labels():
    columns = {
        "loss": [3.0, 2.0, 1.0, 0.0], "clean_probability": [0.1, 0.4, 0.9, 1.0], "label": [0, 0, 1, 1],
        "clean_label": [1, 0, 1, 1], "suggested_label": [1, 1, 1, 1], "split": ["train", "test", "train", "train"],
    }  # fmt: skip
    features = Features(
        {"loss": Value("float32"), "clean_probability": Value("float32"), "split": Value("string")}
        | {name: ClassLabel(names=["cat", "dog"]) for name in columns if "label" in name}
    )
    found = summary_of(Dataset.from_dict(columns, features=features), deviation=0.1)
    assert found["wrong_labels"] == pytest.approx(1.6) and found["judged_labels"] == {"train": 3, "test": 1}
    assert found["given_to_believed"] == {"cat": {"dog": 2}, "dog": {"dog": 2}}
    reach = 1.96 * (0.1 * 0.9 + 0.4 * 0.6 + 0.9 * 0.1 + (4 * 0.1) ** 2) ** 0.5
    assert found["wrong_labels_interval"] == [round(1.6 - reach), round(1.6 + reach)]
    assert found["suspect_labels"] == 2
    assert found["estimated_noise_rate_by_label_report"] == pytest.approx((0.9 + 0.6 + 0.1 + 0) / 4)
    assert found["wrong_label_average_precision"] == pytest.approx(1.0)


def test_our_score_is_compared_as_the_chance_that_a_label_is_wrong():
    comparison = object.__new__(compare_cleanlab.Comparison)
    comparison.wrong = np.array([True, False, False, True])
    found = comparison.judge_ours(np.array([0.1, 0.9, 0.4, 0.2]))
    assert found == {
        "average_precision": 1.0, "flagged": 3, "precision": pytest.approx(2 / 3), "recall": 1.0
    }  # fmt: skip


def test_examples_that_are_not_finite_come_first_and_count_in_nothing(tmp_path):
    probabilities = np.array([[0.1, 0.9], [0.9, 0.1], [np.nan, np.nan], [0.8, 0.2]] + [[0.95, 0.05]] * 20)
    labels, losses = np.zeros(24, dtype=int), -np.log(np.nan_to_num(probabilities, nan=0.5)[:, 0])
    losses[3] = np.inf
    weights = np.where(np.isfinite(losses), 1 - losses / 9, np.nan)
    report = label_report(
        labels, probabilities, losses, ["cat", "dog"], weights=weights, clean_labels=np.array([1] + [0] * 23)
    )
    assert set(report["index"][:2]) == {2, 3} and report["index"][2] == 0
    for name in ("predicted_label", "loss", "weight", "clean_probability"):
        assert report[name][:2] == [None, None] and None not in report[name][2:], name
    summary = summary_of(report)
    json.dumps(summary, allow_nan=False)
    assert summary["examples_not_finite"] == 2 and summary["wrong_label_average_precision"] == 1
    without = np.delete(np.arange(24), [2, 3])
    judgement = judge_by_labels(labels[without], probabilities[without])
    expected = judgement.posteriors[np.arange(22), labels[without]]
    assert summary["suspect_labels"] == (expected < 0.5).sum()
    assert summary["estimated_noise_rate_by_label_report"] == pytest.approx(1 - expected.mean(), abs=1e-6)
    assert "of 22 labels" in verdict(report) and "2 examples, the first rows, could not be judged" in verdict(report)
    images = Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 24, "label": [0] * 24})
    save_report(report, {"train": images}, MWNet(), tmp_path)
    for name in ("suspect_labels.png", "weight_curve.png", "weight_histogram.png"):
        with Image.open(tmp_path / "figures" / name) as picture:
            assert len(picture.convert("L").getcolors()) > 20, name


def test_labels_of_one_loss_are_ranked_by_probability_and_of_one_probability_by_loss():
    report = label_report(
        np.zeros(4, dtype=int), np.array([[0.5, 0.5]] * 4), np.array([1.0, 3.0, 2.0, 2.0]), ["cat", "dog"],
        posteriors=np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.1, 0.9]]),
    )  # fmt: skip
    assert report["index"][:] == [3, 1, 2, 0]


def test_results_are_there_though_the_report_fails(tmp_path, monkeypatch):
    """Hours of training are not lost over a picture."""

    def fail(*arguments, **settings):
        raise RuntimeError("no font")

    monkeypatch.setattr(FaMUSTrainer, "save_label_report", fail)
    with pytest.raises(RuntimeError, match="no font"):
        run_famus.main([
            "--dataset_name", "digits", "--noise", "0.4", "--max_steps", "1", "--use_cpu", "--output_dir",
            str(tmp_path), "--max_train_samples", "200", "--num_meta", "20", "--report_to", "none",
        ])  # fmt: skip
    assert json.loads((tmp_path / "all_results.json").read_text())["global_step"] == 1
    assert (tmp_path / "noise.parquet").is_file()


def trained_on_digits(folder, noise_type, **settings):
    data = load_noisy_dataset("digits", noise=0.4, noise_type=noise_type)
    model = build_backbone("tiny", data["train"].features["label"].names)
    args = FaMUSTrainingArguments(
        str(folder),
        num_train_epochs=8,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        preset="fast",
        **{"meta_learner": "mw-net", **settings},
    )
    trainer = FaMUSTrainer(model, args, train_dataset=data["train"], meta_dataset=data["meta"])
    trainer.train()
    return trainer, data


@pytest.mark.parametrize(("noise_type", "learner"), [("symmetric", "mw-net"), ("pair", "posterior")])
def test_most_wrong_labels_of_real_images_come_first(tmp_path, noise_type, learner):
    """40 % of the labels are wrong, so that a random order has an average precision of about 0.4."""
    trainer, data = trained_on_digits(tmp_path, noise_type, meta_learner=learner)
    report = trainer.save_label_report()
    assert sorted(report["index"][:]) == sorted(data["train"]["index"][:])
    wrong = np.asarray(report["label"][:]) != np.asarray(report["clean_label"][:])
    scores = 1 - np.asarray(report["clean_probability"][:])
    assert AveragePrecision().compute(predictions=scores, references=wrong.astype(int))["average_precision"] > 0.95
    pictures = ["suspect_labels.png"]
    if learner == "mw-net":
        weights, losses = torch.tensor(report["weight"][:]), torch.tensor(report["loss"][:])
        assert torch.allclose(weights, trainer.meta_learner(losses).detach(), atol=1e-6)
        pictures += ["weight_curve.png", "weight_histogram.png"]
    else:  # by what was believed in the first part of training, by which the likeliest class is suggested
        known = trainer.evidence
        judgement = judge_by_both(trainer.beliefs.labels.numpy(), known.probabilities.numpy(),
                                     known.trusted_labels.numpy(), known.trusted.numpy())  # fmt: skip
        rows = [data["train"]["index"][:].index(index) for index in report["index"]]
        posteriors = judgement.posteriors[rows]
        assert np.allclose(posteriors[np.arange(len(rows)), report["label"][:]], report["clean_probability"][:])
        assert posteriors.argmax(1).tolist() == report["suggested_label"][:]
    stored = load_dataset("parquet", data_files=str(tmp_path / "label_report.parquet"), cache_dir=str(tmp_path / "c"))
    assert stored["train"].to_dict() == report.to_dict() and stored["train"].features == report.features
    for name in pictures:
        with Image.open(tmp_path / "figures" / name) as picture:
            assert min(picture.size) > 300 and len(picture.convert("L").getcolors()) > 20, name


def test_the_report_of_an_earlier_training_is_no_part_of_the_next_one(tmp_path):
    """It stays on disk, as the next training may fail, but neither the card shows it nor a push takes it."""
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_label_report()
    trainer.create_model_card()
    assert "figures/weight_curve.png" in (tmp_path / "README.md").read_text()
    time.sleep(0.05)  # more than the time of a file may lag behind
    trainer.train()
    trainer.create_model_card()
    assert (tmp_path / "label_report.parquet").is_file()
    assert "figures/weight_curve.png" not in (tmp_path / "README.md").read_text()
    pushed = files_to_push(tmp_path, newer_than=trainer._started)
    assert not {"label_report.parquet", "figures/weight_curve.png"} & set(pushed)
    trainer.save_records()
    assert trainer.is_of_this_run(tmp_path / "label_report.parquet")


def test_ldam_reports_by_probabilities_and_not_by_cosines(tmp_path):
    """Cosines are at most 1 apart, so that their own softmax would be nearly flat."""
    data = load_noisy_dataset("digits", noise=0.2, max_train_samples=500)
    model = build_backbone("tiny", data["train"].features["label"].names, cosine_classifier=True)
    args = FaMUSTrainingArguments(
        str(tmp_path), num_train_epochs=8, use_cpu=True, save_strategy="no", report_to="none", base_loss="ldam",
        meta_learner="none", per_device_train_batch_size=25,
    )  # fmt: skip
    trainer = FaMUSTrainer(model, args, train_dataset=data["train"])
    trainer.train()
    found = trainer.evaluate_examples(trainer.model, trainer.train_dataset, trainer.base_loss, with_probabilities=True)
    assert np.median(found.probabilities.max(1)) > 0.9
    assert found.losses == pytest.approx(np.asarray(trainer.label_report().sort("index")["loss"][:]), rel=1e-5)


def test_names_of_classes_may_be_odd_and_images_transformed(tmp_path):
    names = ["$^$", "a_very_long_name_of_a_class", "<b>&|"]
    report = label_report(np.array([0, 1, 2]), np.eye(3)[[1, 2, 0]], np.ones(3), names)
    images = Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 3, "label": [0, 1, 2]})
    draw_report(report, {"train": images}, lambda losses: None, tmp_path)
    assert (tmp_path / "figures" / "suspect_labels.png").is_file()
    transformed = images.with_transform(lambda batch: {"pixel_values": batch["image"], "labels": batch["label"]})
    draw_report(report, {"train": transformed}, lambda losses: None, tmp_path)
    assert not (tmp_path / "figures" / "suspect_labels.png").exists()  # no raw images, so no picture, and no error


def test_images_in_folders_are_named_by_their_files(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            colour = (20 * number, 255 * (name == "dog"), 5)
            Image.new("RGB", (8, 8), colour).save(tmp_path / "photos" / name / f"{number}.png")
    data = load_noisy_dataset(str(tmp_path / "photos"))
    args = FaMUSTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True)
    processor = default_image_processor(None, data["train"])
    trainer = FaMUSTrainer(build_backbone("tiny", ["cat", "dog"]), args, processing_class=processor)
    report = trainer.label_report(data["train"])
    rows = {example["index"]: example["image"].getpixel((0, 0)) for example in data["train"]}
    for row in report:
        name, number = row["file"].removesuffix(".png").split("/")
        assert name == report.features["label"].int2str(row["label"])
        assert rows[row["index"]] == (20 * int(number), 255 * (name == "dog"), 5)


def test_a_file_is_its_path_below_the_data_set_so_that_no_two_have_one_name(tmp_path):
    places = [
        f"{animal}/{year}/{number}.png" for animal in ("cat", "dog") for year in (2021, 2022) for number in range(6)
    ]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(place), int(place[4:8]) % 200, int(place[9]))).save(tmp_path / place)
    train = load_noisy_dataset(str(tmp_path), num_meta=0)["train"]
    names = details_of(train)["file"]
    assert len(set(names)) == len(train) and set(names) <= set(places)
    shuffled = train.shuffle(seed=1)
    assert dict(zip(shuffled["index"][:], details_of(shuffled)["file"], strict=True)) == dict(
        zip(train["index"][:], names, strict=True)
    )


def test_a_spreadsheet_shows_the_csv_as_it_is(tmp_path):
    """No cell is a formula, and names of classes are read as UTF-8."""
    names = ["=1+1", "größer 猫", "-3"]
    details = {"text": ["@SUM(A1)", 'a, "b"', None]}
    report = label_report(np.array([0, 1, 2]), np.eye(3)[[1, 2, 0]], np.ones(3), names, details=details)
    label_report_script.write_csv(report, tmp_path / "report.csv")
    assert (tmp_path / "report.csv").read_bytes().startswith(codecs.BOM_UTF8)
    table = pd.read_csv(tmp_path / "report.csv", encoding="utf-8-sig").sort_values("index")
    assert table["label"].tolist() == ["'=1+1", "größer 猫", "'-3"] and table["loss"].tolist() == [1, 1, 1]
    assert table["text"].tolist()[:2] == ["'@SUM(A1)", 'a, "b"'] and table["text"].isna().tolist()[2]


@pytest.mark.parametrize(
    "names", [NAMES, ["猫", "two\nlines\n\n\n\n\nand more", "owl"]], ids=["ASCII", "without glyphs or in several lines"]
)
def test_the_contact_sheet_is_drawn_without_a_warning(tmp_path, names):
    features = Features(
        {name: ClassLabel(names=names) for name in ("label", "predicted_label")} | {"index": Value("int64")}
    )
    report = Dataset.from_dict(
        {"label": [0] * 9, "predicted_label": [1] * 9, "index": list(range(9))}, features=features
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_contact_sheet(report, [Image.new("L", (8, 4 + row)) for row in range(9)], tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (8 * 180, 2 * 240), "eight in a row, cells of 1.5 x 2 inches"


def test_names_on_pictures_are_in_one_line_and_a_number_where_the_font_lacks_them():
    assert short_class("two\n\nlines", 3) == "two lines" and short_class("猫", 3) == "class 3"


def test_classes_without_names_of_their_own_are_numbered():
    config = SimpleNamespace(id2label={0: "x", 1: "x"})
    assert class_names(SimpleNamespace(config=config), 2) == ["0", "1"]
    assert class_names(SimpleNamespace(), 3) == ["0", "1", "2"]


def test_labels_that_the_network_does_not_know_are_refused_in_one_sentence(tmp_path):
    trainer = make_trainer(tmp_path)
    images = torch.zeros(2, *trainer.train_dataset[0]["pixel_values"].shape)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, (0, 99), strict=True)]
    with pytest.raises(ValueError, match=r"the labels go from 0 to 99 and the network has \d classes"):
        trainer.label_report(data)


def test_the_report_leaves_the_run_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    state, mode = torch.get_rng_state(), trainer.model.training
    trainer.label_report()
    assert trainer.model.training == mode and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("meta_learner", ["none", "l2r", "mlc"])
def test_without_weights_of_losses_the_report_has_none_and_no_picture_of_them(tmp_path, meta_learner):
    trainer = make_trainer(tmp_path, meta_learner=meta_learner)
    trainer.train()
    report = trainer.save_label_report()
    assert report["weight"][:] == [None] * len(trainer.train_dataset)
    assert not list(tmp_path.glob("figures/weight*"))


def test_a_loaded_model_judges_other_examples(tmp_path):
    """Made for evaluation only: no training set."""
    data = load_noisy_dataset("digits", max_train_samples=60, max_eval_samples=20, num_meta=0)
    model = build_backbone("tiny", data["train"].features["label"].names)
    args = FaMUSTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    processor = default_image_processor(None, data["train"])
    trainer = FaMUSTrainer(model, args, processing_class=processor, meta_learner=MWNet())
    report = trainer.label_report(data["test"])
    assert len(report) == 20 and None not in report["weight"][:]
    with pytest.raises(ValueError, match="empty, or a stream"):
        trainer.label_report(data["test"].to_iterable_dataset())


def test_the_script_judges_the_labels_that_a_run_was_trained_on(tmp_path, capsys):
    run = tmp_path / "run"
    run_famus.main([
        "--dataset_name", "digits", "--noise", "0.4", "--num_train_epochs", "3", "--use_cpu", "--output_dir", str(run),
        "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no",
    ])  # fmt: skip
    flags = ["--model", str(run), "--dataset_name", "digits", "--csv", "--output_dir", str(tmp_path / "report")]
    label_report_script.main([*flags, "--noise_file", str(run / "noise.parquet"), "--use_cpu"])
    assert "of 1297 labels are wrong can't be told, as what the network believed" in capsys.readouterr().out
    first, second = (Dataset.from_parquet(str(f / "label_report.parquet"), cache_dir=str(tmp_path / "c")).sort("index")
                     for f in (run, tmp_path / "report"))  # fmt: skip
    for name in ("index", "label", "clean_label"):
        assert first[name][:] == second[name][:], name
    assert np.allclose(first["loss"][:], second["loss"][:], atol=1e-4)
    assert second["clean_probability"][:] == [None] * 1297, "the network has learned from these very labels"
    header = "split,index,label,predicted_label,suggested_label,suggestion_probability,reason,loss,weight,"
    header += "clean_probability,clean_label"
    lines = (tmp_path / "report" / "label_report.csv").read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == header and len(lines) == 1298
    results = json.loads((run / "all_results.json").read_text())
    assert results["suspect_labels"] == sum(p < 0.5 for p in first["clean_probability"])
    assert results["wrong_label_average_precision"] > 0.6 and 0 < results["estimated_noise_rate_by_label_report"] < 1


def test_data_of_other_classes_are_refused_in_one_sentence(tmp_path, capsys):
    model = build_backbone("tiny", NAMES)
    model.save_pretrained(tmp_path)
    default_image_processor(None, load_noisy_dataset("digits", num_meta=0)["train"]).save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as end:
        label_report_script.main(["--model", str(tmp_path), "--dataset_name", "digits", "--use_cpu"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in error
    assert "the labels go from 0 to 9 and the network has 3 classes" in error


def test_a_report_is_pushed_as_a_data_set(hub, client, tmp_path):
    build_backbone("tiny", [str(digit) for digit in range(10)]).save_pretrained(tmp_path / "model")
    processor = default_image_processor(None, load_noisy_dataset("digits", num_meta=0)["train"])
    processor.save_pretrained(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--dataset_name", "digits", "--split", "test"]
    push = ["--push_to_hub", "user/suspects", "--private", "--use_cpu", "--output_dir", str(tmp_path / "out")]
    client.done("label_report", argv=[*flags, *push])
    code = "from datasets import load_dataset; print(load_dataset('user/suspects', split='test').to_dict())"
    loaded = client.done("execute", code=code).output
    assert "user/suspects" in hub.private
    report = Dataset.from_parquet(str(tmp_path / "out" / "label_report.parquet"), cache_dir=str(tmp_path / "c"))
    assert loaded.strip() == str(report.to_dict())


def test_the_comparison_with_cleanlab_keeps_its_records(tmp_path):
    """Every method is in the table; a record is read again, and one of other settings refused."""
    pytest.importorskip("cleanlab")
    flags = [
        "--dataset_name", "digits", "--backbone", "tiny", "--num_train", "300", "--num_meta", "100", "--seeds", "0",
        "--noise", "pair:0.4", "--results_dir", str(tmp_path / "records"), "--output_dir", str(tmp_path),
    ]  # fmt: skip

    def compare(epochs):
        command = [
            sys.executable,
            str(SCRIPTS / "experiments" / "compare_cleanlab.py"),
            *flags,
            "--num_train_epochs",
            epochs,
        ]
        return clean_process.run(command)

    first = compare("1")
    assert first.returncode == 0, first.stderr[-2000:]
    table = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7 and table[-1].startswith("| label report of one FaMUS run |")
    assert [line for line in compare("1").stdout.splitlines() if line.startswith("|")] == table
    assert "is of other settings" in compare("2").stderr
