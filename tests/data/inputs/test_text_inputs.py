"""Texts: what a network is given of them, and a run from a table to a folder that its pipeline loads."""

import json
import logging

import numpy as np
import pytest
import release
import torch
from datasets import Dataset, Features, List, Value, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, pipeline

from famus_hf import FaMUSTrainer, load_famus, load_noisy_dataset
from famus_hf.cli import arguments, label_report
from famus_hf.cli import run as run_famus
from famus_hf.cli import run_setup as set_up_run
from famus_hf.data.inputs.text_inputs import TextInputs
from famus_hf.data.media.modalities import TEXT
from famus_hf.hub.load import files_to_push
from tests.helpers.command_line import in_this_process
from tests.helpers.datasets import TEXT_CLASSES, texts, write_texts
from tests.helpers.hostile import refused
from tests.helpers.models import build_text_model, build_tokenizer, text_data
from tests.helpers.saved_runs import write_text_model
from tests.helpers.trainers import learned, make_args, make_text_trainer


@pytest.mark.parametrize("pairs", [False, True])
def test_texts_become_what_the_tokenizer_makes_of_them_and_batches_are_as_long_as_their_longest(pairs):
    data, tokenizer = text_data(30, pairs=pairs), build_tokenizer()
    inputs = TextInputs(Dataset.from_dict({**data, "label": [0] * 30}), tokenizer)
    for row in range(30):
        given = [data[name][row] for name in ("text", "text_pair") if name in data]
        expected = tokenizer(*given)
        assert inputs[row] == {**expected, "labels": 0}
    batch = DataCollatorWithPadding(tokenizer)([inputs[row] for row in (3, 4, 5)])
    longest = max(len(inputs[row]["input_ids"]) for row in (3, 4, 5))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, longest)


def test_long_texts_are_cut_and_counted_and_so_are_empty_ones(caught):
    data = texts(6).remove_columns("text").add_column("text", ["sun " * 40, "", None, "ice", "  ", "sun " * 9])
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 8
    inputs = TextInputs(data, tokenizer, "the training set")
    assert [len(inputs[row]["input_ids"]) for row in range(6)] == [8, 2, 2, 3, 2, 8]
    assert inputs[0]["input_ids"] == tokenizer("sun " * 40, truncation=True, max_length=8)["input_ids"]
    assert "2 of 6 texts of the training set are longer than 8 tokens and are cut (the longest has 42)" in caught.text
    assert "3 of 6 texts of the training set are empty (index 1, 2, 4)" in caught.text
    empty = texts(2).remove_columns("text").add_column("text", ["", None])
    refused("all of 2 texts of the data set are empty", TextInputs, empty, tokenizer)


def test_texts_are_cut_where_the_settings_or_the_network_say(tmp_path):
    assert make_text_trainer(tmp_path).processing_class.model_max_length == 32
    trainer = make_text_trainer(tmp_path, max_seq_length=4)
    assert max(len(example["input_ids"]) for example in trainer.train_dataset) == 4
    refused("exceeds the 32 tokens", lambda: make_text_trainer(tmp_path, max_seq_length=33))
    refused("max_seq_length=0 must be greater than 0", lambda: make_args(tmp_path, max_seq_length=0))


def test_a_gpt_without_a_padding_token_learns_from_batches_of_different_lengths(tmp_path):
    tokenizer = build_tokenizer("[UNK] [EOS]")
    trainer = make_text_trainer(tmp_path, build_text_model("gpt2"), processing_class=tokenizer)
    assert trainer.processing_class.pad_token == "[EOS]" and trainer.model.config.pad_token_id == 1
    assert tokenizer.pad_token is None, "the user's own stays as it was"
    data = texts(9).remove_columns("text").add_column("text", ["", *["sun ice"] * 8])
    inputs = TextInputs(data, trainer.processing_class)
    assert inputs[0]["input_ids"] == [1] and inputs[0]["attention_mask"] == [1]
    trainer.train()
    assert np.isfinite(trainer.evaluate(data)["eval_loss"])
    bare = build_tokenizer("[UNK] [EOS]")
    bare.eos_token = bare.unk_token = None
    refused("no token to pad with", lambda: make_text_trainer(tmp_path, processing_class=bare))


def test_a_stopped_run_on_texts_resumes_bit_for_bit(tmp_path):
    settings = {
        "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-3,
        "log_weights": 2, "log_layers": 2,
    }  # fmt: skip
    whole, again = (make_text_trainer(tmp_path, **settings) for _ in range(2))
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    expected, found = learned(whole), learned(again)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoint-3").model_max_length == 32


# ---- A run ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of the data, of a run on pairs, and what it printed and logged."""
    root = tmp_path_factory.mktemp("texts")
    data, model = write_texts(root / "weather", pairs=True), write_text_model(root / "model")
    handler = logging.Handler()
    lines = []
    handler.emit = lambda record: lines.append(record.getMessage())
    for name in ("transformers", "famus_hf"):
        logging.getLogger(name).addHandler(handler)
    run_famus.main([
        "--dataset_name", str(data), "--model_name_or_path", str(model), "--noise", "0.3",
        "--output_dir", str(root / "run"), "--learning_rate", "1e-2", "--num_train_epochs", "6",
        "--max_seq_length", "24", "--use_cpu", "--disable_tqdm", "true", "--per_device_train_batch_size", "15",
    ])  # fmt: skip
    for name in ("transformers", "famus_hf"):
        logging.getLogger(name).removeHandler(handler)
    return data, root / "run", "\n".join(lines)


def test_a_run_on_pairs_of_texts_leaves_what_the_pipeline_loads(finished):
    data, run, lines = finished
    classify = pipeline("text-classification", str(run), truncation=True)
    test = load_noisy_dataset(str(data), num_meta=0)["test"]
    found = [
        answer["label"]
        for answer in classify(
            [{"text": a, "text_pair": b} for a, b in zip(test["text"], test["text_pair"], strict=True)]
        )
    ]
    accuracy = np.mean([name == TEXT_CLASSES[label] for name, label in zip(found, test["label"], strict=True)])
    results = json.loads((run / "all_results.json").read_text())
    assert results["eval_accuracy"] == pytest.approx(accuracy) and accuracy > 0.6
    assert results["meta_set"] == "clean" and results["mean_active_layers"] > 0
    assert classify.tokenizer.model_max_length == 24
    assert "2 tensors of" in lines and "are new and drawn at random (classifier.bias, classifier.weight)" in lines


def test_the_command_line_fine_tunes_texts_and_says_so(tmp_path, capsys):
    data = {"train": texts(3)}
    argv = ["--dataset_name", str(tmp_path), "--num_train_epochs", "1", "--use_cpu", "--meta_learner", "mw-net"]
    _, _, args = set_up_run.settings_for(data, argv, arguments.parse_arguments(argv))
    assert (args.optim, args.learning_rate, args.lr_scheduler_type) == ("adamw_torch", 2e-5, "linear")
    assert args.num_train_epochs == 1 and args.per_device_train_batch_size == args.meta_batch_size == 32
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "for texts, where nothing else was said: --optim adamw_torch" in line
    assert "--learning_rate 2e-5" in line and "num_train_epochs" not in line
    args = arguments.parse_arguments(argv)[2]
    assert (args.optim, args.learning_rate) == ("sgd", 0.05), "images as ever"
    said = [f"--{name}={value}" for name, value in arguments.fine_tuning(TEXT).items()]
    set_up_run.settings_for(data, [*argv, *said], arguments.parse_arguments([*argv, *said]))
    assert capsys.readouterr().out == "", "where all was said"


def test_the_folder_of_a_run_on_texts_loads_and_travels(finished):
    _, run, _ = finished
    model, meta_learner, layer_sampler, tokenizer = load_famus(run)
    assert (
        type(model).__name__ == "BertForSequenceClassification" and list(model.config.id2label.values()) == TEXT_CLASSES
    )
    assert (
        None not in (meta_learner, layer_sampler)
        and tokenizer("sun")["input_ids"] == build_tokenizer()("sun")["input_ids"]
    )
    files = files_to_push(run)
    assert {"tokenizer.json", "tokenizer_config.json", "model.safetensors", "label_report.parquet"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt"))]


def test_the_card_of_a_text_classifier_says_so_and_its_lines_run(finished):
    _, run, _ = finished
    card = (run / "README.md").read_text()
    for words in (
        "pipeline_tag: text-classification", "type: text-classification", "A text classifier trained on weather",
        'pipeline("text-classification", "run", truncation=True)', "| texts are cut after | 24 tokens |",
    ):  # fmt: skip
        assert words in card, words
    assert "image" not in card.lower() and "augmentation" not in card and "trust_remote_code" not in card


def test_the_label_report_shows_the_texts_and_finds_the_wrong_labels(finished, tmp_path, capsys):
    data, run, _ = finished
    report = load_dataset("parquet", data_files=str(run / "label_report.parquet"), cache_dir=str(tmp_path))["train"]
    train = load_noisy_dataset(str(data), noise=0.3, seed=42)["train"]
    told = dict(zip(train["index"], train["text_pair"], strict=True))
    assert report["text_pair"][:] == [told[index] for index in report["index"]] and "text" in report.features
    assert not (run / "figures" / "suspect_labels.png").exists()
    wrong = np.asarray(report["label"][:]) != np.asarray(report["clean_label"][:])
    assert wrong[: wrong.sum()].mean() > 2 * wrong.mean()
    label_report.main([
        "--model", str(run), "--dataset_name", str(data), "--noise_file", str(run / "noise.parquet"), "--csv",
        "--use_cpu", "--output_dir", str(tmp_path / "report"),
    ])  # fmt: skip
    again = load_dataset(
        "parquet", data_files=str(tmp_path / "report" / "label_report.parquet"), cache_dir=str(tmp_path)
    )
    assert sorted(again["train"]["index"]) == sorted(report["index"])
    assert "text_pair" in (tmp_path / "report" / "label_report.csv").read_text().splitlines()[0]
    assert "predicted_label" in capsys.readouterr().out


def test_long_texts_are_shortened_in_a_report(tmp_path):
    trainer = make_text_trainer(tmp_path)
    data = texts(2).remove_columns("text").add_column("text", ["sun " * 100, None])
    found = dict(zip(*(trainer.label_report(data)[name] for name in ("index", "text")), strict=True))
    assert found[1] is None and found[0] == ("sun " * 100)[:199] + "…"


def test_a_release_of_a_text_classifier_is_proven_by_its_pipeline(finished, tmp_path, capsys, monkeypatch):
    data, run, _ = finished
    monkeypatch.setattr(release, "in_clean_process", in_this_process)
    where = ["--release_dir", str(tmp_path), "--name", "weather-famus"]
    release.main(["--run", str(run), "--dataset_name", str(data), *where])
    printed = capsys.readouterr().out
    assert "by the pipeline, on 45 texts" in printed and "TokenizersBackend" in printed
    card = (tmp_path / "weather-famus" / "README.md").read_text()
    assert 'pipeline("text-classification", "weather-famus", truncation=True)' in card


# ---- What is refused ----


def command(tmp_path, *flags):
    run_famus.main(["--output_dir", str(tmp_path / "out"), "--use_cpu", *flags])


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "give a network for text-classification with --model_name_or_path"),
        (["--backbone", "tiny"], "and no --backbone"),
        (["--model_name_or_path", "MODEL", "--two_networks"], "is for images, and the data are texts"),
        (["--model_name_or_path", "MODEL", "--streaming"], "leave --streaming out"),
        (["--model_name_or_path", "MODEL", "--noise_type", "instance"], "these data have no images"),
        (["--model_name_or_path", "MODEL", "--augmentation", "pad-crop"], "is about images, and these are texts"),
        (["--model_name_or_path", "MODEL", "--image_size", "8"], "is about images, and these are texts"),
        (["--model_name_or_path", "MODEL", "--max_length_seconds", "3"], "is about recordings, and these are texts"),
        (
            ["--model_name_or_path", "MODEL", "--text_column_name", "label"],
            "can't be both the text and the label column",
        ),
        (
            ["--model_name_or_path", "MODEL", "--text_column_name", "words"],
            "text column 'words' is not in",
        ),
        (["--model_name_or_path", "NOWHERE"], "could not be loaded"),
        (["--model_name_or_path", "REGRESSION"], "the model's problem_type is 'regression'"),
        (["--model_name_or_path", "REGRESSION", "--meta_learner", "none"], "the model's problem_type is 'regression'"),
        (["--model_name_or_path", "BARE"], "the tokenizer knows no words"),
    ],
    ids=str,
)
def test_wrong_input_is_one_sentence_before_training(tmp_path, capsys, flags, words):
    data = write_texts(tmp_path / "data")
    places = {"MODEL": tmp_path / "model", "REGRESSION": tmp_path / "regression", "BARE": tmp_path / "bare"}
    places["NOWHERE"] = tmp_path / "nowhere"
    for name, place in places.items():
        if name in flags and name != "NOWHERE":
            write_text_model(place, **({"problem_type": "regression"} if name == "REGRESSION" else {}))
    if "BARE" in flags:
        for path in places["BARE"].glob("tokenizer*"):
            path.unlink()
    with pytest.raises(SystemExit) as ended:
        command(
            tmp_path, "--dataset_name", str(data), "--noise", "0.2", *(str(places.get(flag, flag)) for flag in flags)
        )
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and said.startswith("run_famus.py: error: ") and words in said, said


@pytest.mark.parametrize(
    "feature, values, words",
    [
        (List(Value("int64")), [[0, 1], [1], [0]] * 10, "which are not classes"),
        (Value("float32"), [0.5, 1.5, 2.0] * 10, "which are not classes"),
        (Value("int64"), [0, 1, -100] * 10, "hold -100 or another number that is no class"),
        (Value("string"), ["a", None, "b"] * 10, "10 of 30 rows have no label"),
    ],
    ids=["several classes", "numbers", "-100", "missing"],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, feature, values, words):
    features = Features({"text": Value("string"), "label": feature})
    Dataset.from_dict({"text": text_data(30)["text"], "label": values}, features=features).to_parquet(
        str(tmp_path / "train.parquet")
    )
    with pytest.raises(ValueError, match=words):
        load_noisy_dataset(str(tmp_path), meta_set="pseudo-clean")


def test_a_model_without_a_tokenizer_is_told_to_bring_one(tmp_path):
    build_text_model().save_pretrained(tmp_path)
    places = {"": build_text_model(), str(tmp_path): AutoModelForSequenceClassification.from_pretrained(tmp_path)}
    for place, model in places.items():
        words = "the tokenizer knows no words" if place else "give its tokenizer as processing_class"
        with pytest.raises(ValueError, match=words):
            FaMUSTrainer(model, make_args(tmp_path), train_dataset=texts(40), meta_dataset=texts(12, 1, 1000))
        assert model.config._name_or_path == place
    with pytest.raises(ValueError, match="texts need a tokenizer"):
        FaMUSTrainer(build_text_model(), make_args(tmp_path), train_dataset=texts(40), processing_class=str)
    write_text_model(tmp_path, 3)
    found = FaMUSTrainer(
        AutoModelForSequenceClassification.from_pretrained(tmp_path), make_args(tmp_path), train_dataset=texts(40)
    )
    assert found.processing_class.model_max_length == 32, "the tokenizer that lies beside the model"
