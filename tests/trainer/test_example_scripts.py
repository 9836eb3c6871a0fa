"""transformers' example scripts for text, image and audio classification, reduced: ours takes Trainer's place in them.

Only the two classes are others. Networks are tiny and of random weights, data are made here.
"""

import json

import numpy as np
import pytest
import torch
from datasets import Audio, ClassLabel, Dataset
from scipy.io import wavfile
from transformers import (
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    set_seed,
)

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments
from tests.helpers.datasets import IMAGE_CLASSES, TEXT_CLASSES, pictures, texts
from tests.helpers.models import build_audio_model, build_model, build_text_model, build_tokenizer

RATE = 1000
PAIRS = {
    "theirs": (Trainer, TrainingArguments, []),
    "ours, plainly": (FaMUSTrainer, FaMUSTrainingArguments, ["--meta_learner", "none"]),
    "ours": (FaMUSTrainer, FaMUSTrainingArguments, []),
}


def parsed(kind, folder, *flags):
    """The training arguments, by the scripts' own parser."""
    words = ["--output_dir", str(folder), "--do_train", "--do_eval", "--do_predict", "--max_steps", "6", "--seed", "1",
             "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8", "--logging_steps", "2",
             "--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "steps", "--save_steps", "3",
             "--load_best_model_at_end", "--metric_for_best_model", "accuracy", "--use_cpu", "--report_to", "none",
             "--disable_tqdm", "true", *flags]  # fmt: skip
    (args,) = HfArgumentParser(kind).parse_args_into_dataclasses(words)
    set_seed(args.seed)
    return args


def accuracy(prediction):
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((np.argmax(logits, axis=1) == prediction.label_ids).mean())}


def finish(trainer, args, card):
    """What all three scripts do with a trainer."""
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        metrics = {**result.metrics, "train_samples": len(trainer.train_dataset)}
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.create_model_card(**card)


def text_script(trainer_class, args_class, folder, *flags):
    args = parsed(args_class, folder, *flags)
    tokenizer, model = build_tokenizer(), build_text_model()

    def preprocess(examples):
        return tokenizer(examples["text"], padding=False, max_length=32, truncation=True)

    raw = {"train": texts(48), "validation": texts(12, 1), "test": texts(10, 2)}
    data = {split: part.rename_column("index", "idx").map(preprocess, batched=True) for split, part in raw.items()}
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=accuracy,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if args.fp16 else None),
    )
    card = {"finetuned_from": "org/bert", "tasks": "text-classification", "language": "en", "dataset_tags": "glue",
            "dataset_args": "sst2", "dataset": "GLUE SST2"}  # fmt: skip
    finish(trainer, args, card)
    unlabelled = data["test"].remove_columns("label")
    predictions = trainer.predict(unlabelled, metric_key_prefix="predict").predictions
    assert np.argmax(predictions, axis=1).shape == (10,)
    return trainer, TEXT_CLASSES


def image_script(trainer_class, args_class, folder, *flags):
    args = parsed(args_class, folder, "--remove_unused_columns", "False", *flags)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    model = build_model("vit", torch.float32)
    model.config.label2id = {name: number for number, name in enumerate([*IMAGE_CLASSES, "none"])}
    model.config.id2label = dict(enumerate([*IMAGE_CLASSES, "none"]))

    def transforms(batch):
        images = [picture.convert("RGB") for picture in batch["image"]]
        batch["pixel_values"] = [processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
        return batch

    def collate_fn(examples):
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    train, validation = pictures(48, 0), pictures(12, 1)
    train.set_transform(transforms)
    validation.set_transform(transforms)
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=accuracy,
        processing_class=processor,
        data_collator=collate_fn,
    )
    card = {"finetuned_from": "org/vit", "tasks": "image-classification", "dataset": "beans",
            "tags": ["image-classification", "vision"]}  # fmt: skip
    finish(trainer, args, card)
    return trainer, [*IMAGE_CLASSES, "none"]


def recordings(folder, size, seed):
    """Two pitches, in wav files."""
    folder.mkdir(exist_ok=True)
    draw, files = np.random.default_rng(seed), []
    for number in range(size):
        seconds = 0.2 + 0.01 * (number % 5)
        times = np.arange(round(seconds * RATE)) / RATE
        wave = np.sin(2 * np.pi * (50, 200)[number % 2] * times) + draw.normal(0, 0.1, len(times))
        files.append(str(folder / f"{seed}-{number}.wav"))
        wavfile.write(files[-1], RATE, (wave * 10000).astype(np.int16))
    data = Dataset.from_dict({"audio": files, "label": [number % 2 for number in range(size)]})
    return data.cast_column("audio", Audio(decode=False)).cast_column("label", ClassLabel(names=["low", "high"]))


def audio_script(trainer_class, args_class, folder, *flags):
    args = parsed(args_class, folder, "--remove_unused_columns", "False", *flags)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=False)
    model = build_audio_model()
    model.config.label2id, model.config.id2label = {"low": 0, "high": 1}, {0: "low", 1: "high"}

    def transforms(batch):
        waves = [wavfile.read(audio["path"])[1][:200].astype(np.float32) for audio in batch["audio"]]
        inputs = extractor(waves, sampling_rate=RATE)
        return {"input_values": inputs["input_values"], "labels": list(batch["label"])}

    train, validation = (recordings(folder / "data", size, seed) for size, seed in ((48, 0), (12, 1)))
    train.set_transform(transforms, output_all_columns=False)
    validation.set_transform(transforms, output_all_columns=False)
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=accuracy,
        processing_class=extractor,
    )
    card = {"finetuned_from": "org/wav2vec2", "tasks": "audio-classification", "dataset": "superb",
            "tags": ["audio-classification"]}  # fmt: skip
    finish(trainer, args, card)
    return trainer, ["low", "high"]


SCRIPTS = {"text": text_script, "image": image_script, "audio": audio_script}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("pair", PAIRS)
def test_an_example_script_runs_with_only_the_classes_changed(tmp_path, script, pair):
    trainer_class, args_class, flags = PAIRS[pair]
    trainer, classes = SCRIPTS[script](trainer_class, args_class, tmp_path, *flags)
    assert trainer.state.global_step == 6 and len(classes) == trainer.model.config.num_labels
    for name in ("model.safetensors", "config.json", "trainer_state.json", "README.md", "checkpoint-6"):
        assert (tmp_path / name).exists(), name
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert {"train_loss", "eval_accuracy", "train_samples"} <= set(results)
    if pair == "ours":
        learned = trainer.meta.steps > 0 or trainer.beliefs.visits.any()  # the latter without trusted examples
        assert learned and (tmp_path / "meta_net" / "config.json").is_file()
