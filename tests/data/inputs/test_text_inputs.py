"""Text classifiers of transformers: from a table of texts to a folder that its pipeline loads, by the same step."""

import contextlib
import io
import json
import logging
import re
import sys
from copy import deepcopy

import numpy as np
import pytest
import release
import torch
from datasets import ClassLabel, Dataset, Features, List, Value, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, pipeline

from famus_hf import FaMUSTrainer, MWNet, load_famus, load_noisy_dataset, meta_gradient
from famus_hf.cli import arguments, label_report
from famus_hf.cli import run as run_famus
from famus_hf.cli import run_setup as set_up_run
from famus_hf.data.inputs.text_inputs import TextInputs
from famus_hf.data.media.modalities import TEXT
from famus_hf.data.sources.columns import Columns, with_standard_columns
from famus_hf.hub.load import files_to_push
from famus_hf.metrics import compute_accuracy
from tests.helpers import brute_force
from tests.helpers.hostile import refused
from tests.helpers.models import WORDS, build_text_model, build_tokenizer, text_data
from tests.trainer.test_trainer import make_args

NAMES = sorted(WORDS)


@pytest.fixture
def caught(caplog):
    """What is logged."""
    for name in ("transformers", "famus_hf"):
        logging.getLogger(name).addHandler(caplog.handler)
    yield caplog
    for name in ("transformers", "famus_hf"):
        logging.getLogger(name).removeHandler(caplog.handler)


def texts(size, seed=0, first_index=0, **columns):
    """A raw data set as `load_noisy_dataset` gives it."""
    data = {**text_data(size, seed), "index": range(first_index, first_index + size), **columns}
    data["label"] = [NAMES.index(name) for name in data["label"]]
    label = ClassLabel(names=NAMES)
    kinds = {name: {"index": Value("int64"), "label": label}.get(name, Value("string")) for name in data}
    return Dataset.from_dict(data, features=Features(kinds))


def make_text_trainer(folder, model=None, size=40, processing_class=None, **settings):
    return FaMUSTrainer(
        build_text_model() if model is None else model,
        make_args(folder, **settings),
        train_dataset=texts(size),
        eval_dataset=texts(20, 2, 2000),
        meta_dataset=texts(12, 1, 1000),
        processing_class=processing_class or build_tokenizer(),
        compute_metrics=compute_accuracy,
    )


# ---- Data ----


def test_text_columns_and_pairs_are_found_or_named():
    table = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [0], "idx": [7]})
    found = with_standard_columns(table, Columns())
    assert found.column_names == ["text", "text_pair", "label"] and found[0]["text_pair"] == "b"
    assert with_standard_columns(table, Columns(text="sentence2")).column_names == ["text", "label"]
    swapped = with_standard_columns(table, Columns(text="sentence2", text_pair="sentence1"))
    assert swapped[0] == {"text": "b", "text_pair": "a", "label": 0}
    refused("text column", with_standard_columns, table.add_column("title", ["c"]), Columns())
    refused("can't be both texts of a pair", with_standard_columns, table, Columns(text="idx", text_pair="idx"))
    refused("needs the first text", with_standard_columns, table, Columns(text_pair="sentence1"))
    refused("is not text", with_standard_columns, table, Columns(text="sentence1", text_pair="idx"))
    refused("text and audio column contradict", with_standard_columns, table, Columns(text="idx", audio="idx"))


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
    inputs = TextInputs(data, tokenizer)
    assert [len(inputs[row]["input_ids"]) for row in range(6)] == [8, 2, 2, 3, 2, 8]
    assert inputs[0]["input_ids"] == tokenizer("sun " * 40, truncation=True, max_length=8)["input_ids"]
    assert "2 of 6 texts are longer than 8 tokens and are cut (the longest has 42)" in caught.text
    assert "3 of 6 texts are empty (index 1, 2, 4)" in caught.text
    empty = texts(2).remove_columns("text").add_column("text", ["", None])
    refused("all of 2 texts are empty", TextInputs, empty, tokenizer)


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


def test_copies_of_meta_examples_are_left_out_or_refused(tmp_path):
    table = text_data(40)
    table["text"] += ["sun and rain"] * 2
    table["label"] += ["wet"] * 2
    Dataset.from_dict(table).to_csv(str(tmp_path / "train.csv"))
    Dataset.from_dict(text_data(12, 1)).to_csv(str(tmp_path / "test.csv"))
    for seed in range(3):
        data = load_noisy_dataset(str(tmp_path), noise=0.2, num_meta=20, seed=seed)
        assert not set(data["train"]["text"]) & set(data["meta"]["text"])
    with pytest.raises(ValueError, match="training texts are also in the meta set, word for word"):
        FaMUSTrainer(
            build_text_model(), make_args(tmp_path), train_dataset=texts(40), meta_dataset=texts(40, 0, 1000),
            processing_class=build_tokenizer(),
        )  # fmt: skip


# ---- The meta step ----

KINDS = ("bert", "distilbert", "gpt2", "tied encoder and decoder", "frozen embeddings", "lora")


def network(kind, dtype=torch.float64):
    """A tiny network away from its start, in train mode, with dropout."""
    name = {"tied encoder and decoder": "bart", "frozen embeddings": "bert", "lora": "bert"}.get(kind, kind)
    model = build_text_model(name, **({"pad_token_id": 1} if name != "bart" else {}))
    if kind == "lora":
        model = get_peft_model(
            model, LoraConfig(target_modules=["query", "value"], r=2, modules_to_save=["classifier"])
        )
    if kind == "frozen embeddings":
        model.bert.embeddings.requires_grad_(False)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).train()


def token_batch(seed, size=5):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (size, 1), generator=generator)
    mask = (torch.arange(8) < lengths).long()
    ids = torch.randint(4, 40, (size, 8), generator=generator) * mask + (1 - mask)  # 1 pads
    ids[torch.arange(size), lengths[:, 0] - 1] = 3  # where BART reads its answer
    labels = torch.randint(3, (size,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("derivative", ["forward", "reverse", "finite"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_gradient_is_that_of_double_backward_through_one_dropout_mask(kind, derivative):
    model, mw_net = network(kind), MWNet(initial_scale=1.0).double()
    train, meta = token_batch(1), token_batch(2)
    torch.manual_seed(7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = meta_gradient(model, mw_net, train, meta, learning_rate=0.1, derivative=derivative)
    expected = brute_force.mw_net_gradient(model, mw_net, train, meta, 0.1)
    size = max(gradient.abs().max() for gradient in expected.values())
    assert size > 1e-7
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < (1e-5 if derivative == "finite" else 1e-11) * size, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Recorder:
    """Pads as the trainer would, and keeps the batches of either set."""

    def __init__(self):
        self.pad, self.train, self.meta = DataCollatorWithPadding(build_tokenizer()), [], []

    def __call__(self, examples):
        batch = self.pad(examples)
        which = self.meta if 1000 <= examples[0]["index"] < 2000 else self.train
        which.append({name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
        return batch


def test_five_steps_of_fine_tuning_equal_double_backward_through_the_step_that_adamw_takes(tmp_path):
    """The virtual step is w − α·P·g, with P from the state of AdamW before its step, by default."""
    model = network("bert", torch.float64).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    reference, mw_net = deepcopy(model).train(), MWNet(initial_scale=1.0).double()
    theirs, rate = deepcopy(mw_net), 1e-2
    start = theirs.output.weight.detach().clone()
    trainer = FaMUSTrainer(
        model,
        make_args(tmp_path, max_steps=5, layer_sampler="all", optim="adamw_torch", learning_rate=rate, weight_decay=0.0,
                  lr_milestones=[]),
        Recorder(),
        texts(40),
        processing_class=build_tokenizer(),
        meta_dataset=texts(12, 1, 1000),
        meta_learner=mw_net,
    )  # fmt: skip
    recorder = trainer.data_collator
    recorder.train.clear(), recorder.meta.clear()
    trainer.train()
    parameters = dict(reference.named_parameters())
    means, squares = ({name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for step in range(5):
        train, meta = recorder.train[step], recorder.meta[step]
        factors = {
            name: torch.ones_like(p) if step == 0 else (1 - 0.9) / (1 - 0.9 ** (step + 1))
            / ((squares[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            for name, p in parameters.items()
        }  # fmt: skip
        found = brute_force.mw_net_gradient(reference, theirs, train, meta, rate, preconditioners=factors)
        for name, parameter in theirs.named_parameters():
            parameter.grad = found[name]
        optimizer.step()
        loss = brute_force.mw_net_loss(theirs)(brute_force.logits_of(reference, train, parameters), train["labels"])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                means[name] = 0.9 * means[name] + 0.1 * gradient
                squares[name] = 0.999 * squares[name] + 0.001 * gradient**2
                root = (squares[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                parameter -= rate * means[name] / (1 - 0.9 ** (step + 1)) / root
    for own, other in ((trainer.meta_learner, theirs), (trainer.model, reference)):
        for name, tensor in other.named_parameters():
            difference = (own.get_parameter(name) - tensor).abs().max()
            assert difference < 1e-8, name  # AdamW divides gradients near zero by their own size
    assert (theirs.output.weight - start).abs().max() > 1e-6, "θ has moved"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_attention_kernel_and_its_cost_are_reported_and_only_the_passes_that_need_it_take_it(
    tmp_path, caught, monkeypatch, kind
):
    tokenizer = build_tokenizer(*(["[UNK] [EOS]"] if kind == "gpt2" else []))
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def recorded(*arguments, **keywords):
        seen.append((torch.backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled()))
        return attention(*arguments, **keywords)

    trainer = make_text_trainer(
        tmp_path, build_text_model(kind), processing_class=tokenizer, layer_sampler="all", max_steps=1
    )
    assert "attention is computed by torch's math kernel" in caught.text
    assert "a forward pass of 8 examples takes" in caught.text
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    trainer.train()
    assert seen == [(False, True)] * 2 + [(True, True)] * 2 + [(False, False)] * 2  # of two layers: training, meta, ż
    caught.clear()
    make_text_trainer(tmp_path, build_text_model(kind), processing_class=tokenizer, derivative="finite")
    make_text_trainer(tmp_path, build_text_model(kind, attn_implementation="eager"), processing_class=tokenizer)
    assert "math kernel" not in caught.text


def learned(trainer):
    parts = (trainer.model, trainer.meta_learner, trainer.layer_sampler)
    return [tensor for part in parts for tensor in part.state_dict().values()]


def test_a_stopped_run_on_texts_resumes_bit_for_bit(tmp_path):
    settings = {
        "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-3,
        "log_weights": 2, "log_layers": 2,
    }  # fmt: skip
    whole, again = (make_text_trainer(tmp_path, **settings) for _ in range(2))
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(learned(whole), learned(again), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoint-3").model_max_length == 32


# ---- A run ----


def write_texts(folder, pairs=False):
    """train.csv and test.csv."""
    folder.mkdir(exist_ok=True)
    for split, size, seed in (("train", 150, 0), ("test", 45, 1)):
        data = text_data(size, seed, pairs)
        names = {"text": "sentence1", "text_pair": "sentence2"} if pairs else {}
        Dataset.from_dict({names.get(n, n): values for n, values in data.items()}).to_csv(str(folder / f"{split}.csv"))
    return folder


def write_model(folder, num_labels=2, **settings):
    """What `--model_name_or_path` names: its head is for other classes."""
    build_text_model(num_labels=num_labels, pad_token_id=1, initializer_range=0.2, **settings).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of the data, of a run on pairs, and what it printed and logged."""
    root = tmp_path_factory.mktemp("texts")
    data, model = write_texts(root / "weather", pairs=True), write_model(root / "model")
    handler = logging.Handler()
    lines = []
    handler.emit = lambda record: lines.append(record.getMessage())
    for name in ("transformers", "set_up_run"):
        logging.getLogger(name).addHandler(handler)
    run_famus.main([
        "--dataset_name", str(data), "--model_name_or_path", str(model), "--noise", "0.3",
        "--output_dir", str(root / "run"), "--learning_rate", "1e-2", "--num_train_epochs", "6",
        "--max_seq_length", "24", "--use_cpu", "--disable_tqdm", "true", "--per_device_train_batch_size", "15",
    ])  # fmt: skip
    for name in ("transformers", "set_up_run"):
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
    accuracy = np.mean([name == NAMES[label] for name, label in zip(found, test["label"], strict=True)])
    results = json.loads((run / "all_results.json").read_text())
    assert results["eval_accuracy"] == pytest.approx(accuracy) and accuracy > 0.6
    assert results["meta_set"] == "clean" and results["mean_active_layers"] > 0
    assert classify.tokenizer.model_max_length == 24
    assert "2 tensors of" in lines and "are new and drawn at random (classifier.bias, classifier.weight)" in lines


def test_the_command_line_fine_tunes_texts_and_says_so(tmp_path, capsys):
    data = {"train": texts(3)}
    argv = ["--dataset_name", str(tmp_path), "--num_train_epochs", "1", "--use_cpu"]
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
    assert type(model).__name__ == "BertForSequenceClassification" and list(model.config.id2label.values()) == NAMES
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
    assert not (run / "figures" / "suspect_labels.png").exists() and (run / "figures" / "weight_curve.png").is_file()
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


def in_this_process(code, home, *arguments):
    """What the code prints last; tests/test_release.py has the clean processes."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["-c", *arguments])
        patch.setitem(sys.modules, "famus_hf", sys.modules["famus_hf"])  # put back, as the code may take it away
        exec(code, {})
    return json.loads(printed.getvalue().splitlines()[-1])


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
        (["--model_name_or_path", "MODEL", "--two_networks"], "mixes images, and the data are texts"),
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
            write_model(place, **({"problem_type": "regression"} if name == "REGRESSION" else {}))
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
    write_model(tmp_path, 3)
    found = FaMUSTrainer(
        AutoModelForSequenceClassification.from_pretrained(tmp_path), make_args(tmp_path), train_dataset=texts(40)
    )
    assert found.processing_class.model_max_length == 32, "the tokenizer that lies beside the model"


HOSTILE = {
    "code of its own": (
        {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"},
        "has a 'auto_map'",
    ),
    "another file": ({"vocab_file": "/etc/passwd"}, "has a 'vocab_file', and no code or file"),
    "a tokenizer with a vocabulary of its own": (
        {"tokenizer_class": "CanineTokenizer"},
        "is 'CanineTokenizer', which is none",
    ),
    "a class that nobody knows": ({"tokenizer_class": "Evil"}, "is 'Evil', which is none that tokenizer.json holds"),
    "no word for a class": ({"tokenizer_class": [1]}, "is '[1]', which is none"),
    "a size of 10^12": ({"cutoff": 10**12}, "beyond 1048576"),
    "arguments": ({"init_inputs": ["/etc/passwd"]}, "has a 'init_inputs'"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tokenizers_are_refused_and_nothing_runs(tmp_path, kind):
    changes, words = HOSTILE[kind]
    write_model(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    refused(re.escape(words), load_famus, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_is_read_from_json_inside_the_folder_alone(tmp_path):
    write_model(tmp_path / "sound")
    load_famus(tmp_path / "sound")
    secret = tmp_path / "secret.json"
    for name, content, words in (
        ("tokenizer.json", None, "there is no tokenizer.json, and vocabularies in other formats are not read"),
        ("tokenizer.json", b"{", "holds no tokenizer that can be loaded"),
        ("tokenizer.json", b" " * 2**27, "and at most 67108864 are read"),
        ("tokenizer_config.json", b"[1]", "holds a list and no object"),
        ("tokenizer.json", secret, "a link that leaves the folder"),
    ):
        write_model(tmp_path / "hostile")
        path = tmp_path / "hostile" / name
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            secret.write_bytes((tmp_path / "sound" / name).read_bytes())
            path.symlink_to(secret)
        refused(words, load_famus, tmp_path / "hostile")
        path.unlink(missing_ok=True)
