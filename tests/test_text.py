"""Text classifiers of transformers: from a table of texts to a folder that its pipeline loads, by the same step."""

import logging

import brute_force
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from hostile import refused
from models import WORDS, build_text_model, build_tokenizer, text_data
from peft import LoraConfig, get_peft_model
from test_trainer import make_args
from transformers import DataCollatorWithPadding

from famus_hf import FaMUSTrainer, MWNet, load_noisy_dataset, meta_gradient
from famus_hf.data.columns import Columns, with_standard_columns
from famus_hf.data.texts import TextInputs
from famus_hf.metrics import compute_accuracy

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
