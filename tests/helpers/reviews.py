"""A folder of small photos, a quarter of the labels wrong, and a run's folder with a label report on it."""

import json
import shutil

import numpy as np
from PIL import Image

from famus_hf.data.fingerprint import fingerprint_of_splits
from famus_hf.data.labels.decisions import Decisions
from famus_hf.data.load import load_splits
from famus_hf.reporting.label_report import label_report
from famus_hf.review.suspects import examples_in
from famus_hf.storage.run_folder import REPORT_FILE, RESULTS

CLASSES = ["ant", "bee", "cow"]
SIZE = 60


def write_photos(folder):
    """Images in a folder for each class: their colour is the truth, and of each four one lies in another folder."""
    for number in range(SIZE):
        truth = number % 3
        given = (truth + 1) % 3 if number % 4 == 0 else truth
        (folder / CLASSES[given]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(60, size=(8, 8, 3), dtype=np.uint8)
        pixels[..., truth] += 180
        Image.fromarray(pixels).save(folder / CLASSES[given] / f"{number:02d}.png")
    return folder


def truth_of(example):
    """The class of a file by its name."""
    return CLASSES[int(example.rsplit("/")[-1][:2]) % 3]


def report_on(splits, split="train", sure=0.9):
    """What a good learner would say of a split of photos; the suggestion is always the truth."""
    dataset = splits[split]
    labels, names = np.array(dataset["label"][:]), dataset.features["label"].names
    files = [value["path"] for value in dataset.data.column("image").to_pylist()]
    files = ["/".join(path.split("/")[-2:]) for path in files]
    files = [files[row] for row in (dataset._indices.column(0).to_pylist() if dataset._indices else range(len(files)))]
    truth = np.array([names.index(truth_of(file)) for file in files])
    rows, count = np.arange(len(labels)), len(names)
    probabilities = np.where(np.arange(count) == truth[:, None], sure, (1 - sure) / (count - 1))
    chance = np.where(labels == truth, 0.97, 0.05) - rows / 100_000
    posteriors = np.where(labels == truth, 0, 1 - sure - chance)[:, None] / max(1, count - 2) * np.ones(count)
    posteriors[labels == truth] = ((1 - chance[labels == truth]) / (count - 1))[:, None]
    posteriors[rows, truth] = sure
    posteriors[rows, labels] = chance
    return label_report(
        labels, probabilities, -np.log(probabilities[rows, labels]), names, details={"file": files},
        posteriors=posteriors, splits=[split] * len(labels),
    )  # fmt: skip


def write_run(folder, data, report):
    """A folder with what review and relabel read of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    report.to_parquet(str(folder / REPORT_FILE))
    (folder / RESULTS).write_text(json.dumps({"dataset_name": str(data)}))
    return folder


def photos_and_run(folder):
    """Both, and the splits of the photos."""
    data = write_photos(folder / "photos")
    splits = load_splits(name=str(data))
    return data, write_run(folder / "run", data, report_on(splits)), splits


def decisions_of(splits, count=None, **keywords):
    """What a reviewer who knows the truth says of the most suspect examples of train."""
    decisions = Decisions(fingerprint_of_splits(splits))
    for suspect in examples_in(report_on(splits, **keywords))[:count]:
        decisions.by_key[suspect.key] = suspect.decided(truth_of(suspect.example))
    return decisions


def without(folder, name):
    """A folder in which an image has gone."""
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
