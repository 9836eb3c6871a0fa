"""One HTML page about a run, for people who do not read code: how good it is, which labels look wrong, and why.

The page is self-contained: pictures, images and recordings are inside, it runs no script and fetches nothing.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset
from markupsafe import Markup

from famus_hf.data.load import load_noisy_dataset
from famus_hf.data.media.images import as_stored
from famus_hf.errors import reason_of
from famus_hf.reporting.diagnostics.time_estimate import format_duration
from famus_hf.reporting.figures.label_report import OF_REPORT, SHEET
from famus_hf.reporting.figures.run_records import RunRecords, read_run
from famus_hf.reporting.figures.runs import draw_runs
from famus_hf.reporting.html import data_uri, rendered
from famus_hf.reporting.label_report import TEXT_COLUMNS, TRAIN, judged, read_report, suggestion_column, verdict
from famus_hf.reporting.shown import SHOW, TYPES
from famus_hf.reporting.tables import format_rate
from famus_hf.reporting.true_accuracy import in_words
from famus_hf.storage.run_folder import FIGURES, REPORT_FILE

Place = tuple[str, int]  # split, and index within it

SHOWN = 40  # suspect examples
LISTED = 30  # classes, those with the most suspect labels
SIZES = {"image": 224, "audio": 5}  # of an image at most, in pixels of a side; of a recording, in seconds
TEMPLATE = Path(__file__).with_name("page_template.html")


# ---- Pictures ----


def pictures_of(runs: list[RunRecords], folder: Path) -> dict[str, tuple[str, str]]:
    """Return name → data URI and caption, of what the runs have logged and of what the label report has drawn."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw_runs(runs, Path(scratch), ("svg",))
        pictures = {
            name: (data_uri((Path(scratch) / f"{name}.svg").read_bytes(), "image/svg+xml"), caption)
            for name, caption in drawn.items()
        }
    for file, caption in OF_REPORT.items():
        path = folder / FIGURES / file
        if path.is_file():
            pictures[path.stem] = (data_uri(path.read_bytes(), "image/png"), caption)
    return pictures


def as_html(pictures: Mapping[str, tuple[str, str]], *names: str) -> Markup:
    """Return the pictures with these names that are there."""
    figure = '<figure><img src="{0}" alt="{1}"><figcaption>{1}</figcaption></figure>'
    return Markup("\n").join(Markup(figure).format(*pictures[name]) for name in names if name in pictures)


# ---- Tables ----


def row_of_method(run: RunRecords) -> dict[str, str] | None:
    """Return accuracies and time of a run; None where none was recorded."""
    accuracies, last = run.on_test_set("accuracy"), run.last_accuracy
    if not accuracies or last is None:
        return None
    seconds = run.results.get("train_seconds") or max(run.series("train_seconds").values(), default=None)
    return {
        "name": run.name,
        "last": f"{100 * last:.1f} %",
        "best": f"{100 * max(accuracies.values()):.1f} %",
        "true": format_rate(run.results.get("estimated_true_accuracy")),
        "seconds": "–" if seconds is None else format_duration(seconds),
    }


def suspects_of(
    report: Dataset, files: Mapping[Place, str], note: str, interval: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return what the page says of the label report.

    Args:
        report: See `famus_hf.reporting.label_report`, with the doubt in its description where there is one.
        files: Split and index → data URI of an image or a recording.
        note: Why there are none.
        interval: In which the number of wrong labels probably lies.
    """
    words, report = verdict(report, interval), judged(report)
    labels, names = report["label"][:], report.features["label"]
    predicted = report[suggestion_column(report)][:]
    suspect = [chance is not None and chance < 0.5 for chance in report["clean_probability"][:]]
    per_class, wrong = Counter(labels), Counter[int]()
    looks_like: dict[int, Counter[int]] = {}
    for label, other, is_suspect in zip(labels, predicted, suspect, strict=True):
        if is_suspect:
            wrong[label] += 1
            looks_like.setdefault(label, Counter())[other] += 1
    classes = [
        {
            "name": names.int2str(label),
            "count": per_class[label],
            "suspect": f"{count} ({100 * count / per_class[label]:.1f} %)",
            "other": ", ".join(f"{names.int2str(other)} ({n})" for other, n in looks_like[label].most_common(2)),
        }
        for label, count in wrong.most_common(LISTED)
    ]
    examples = [example_of(row, names, files) for row in report.select(range(min(SHOWN, len(report))))]
    return {
        "sentence": f"{words[0].upper()}{words[1:]}.",
        "classes": classes,
        "examples": examples,
        "has_images": any(example["image"] for example in examples),
        "note": note,
    }


def place_of(row: Mapping[str, Any]) -> Place:
    """Return where an example of a report is found; in those of earlier versions all are of train."""
    return row.get("split", TRAIN), row["index"]


def example_of(row: dict[str, Any], names: ClassLabel, files: Mapping[Place, str]) -> dict[str, Any]:
    """Return what the page says of a row of the label report."""
    split, index = place = place_of(row)
    file = files.get(place, "")
    return {
        "index": index,
        "where": row.get("file") or (f"example {index}" if split == TRAIN else f"example {index} of {split}"),
        "given": names.int2str(row["label"]),
        "predicted": names.int2str(row.get("suggested_label", row["predicted_label"])),
        "reason": row.get("reason", ""),
        "chance": None if row["clean_probability"] is None else f"{100 * row['clean_probability']:.1f} %",
        "image": file if file.startswith("data:image") else None,
        "sound": file if file.startswith("data:audio") else None,
        "text": " / ".join(row[name] for name in TEXT_COLUMNS if row.get(name)),
    }


def facts_of(results: Mapping[str, Any]) -> dict[str, str]:
    """Return what all_results.json says, in words."""
    facts = {
        "data set": results.get("dataset_name"),
        "method": results.get("method"),
        "network": results.get("network"),
        "labels known to be wrong": format_rate(results.get("realised_noise_rate")),
        "labels that are wrong, as estimated": format_rate(results.get("estimated_noise_rate_by_label_report")),
        "examples with trusted labels": results.get("meta_set_size") if results.get("meta_set") == "clean" else None,
        "training steps": results.get("global_step"),
        "seconds of a step": results.get("train_seconds_per_step") and f"{results['train_seconds_per_step']:.4f}",
        "layers that carried the meta gradient, mean": results.get("mean_active_layers")
        and f"{results['mean_active_layers']:.1f} of {len(results.get('share_of_steps_on', {}))}",
        "seed": results.get("seed"),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "–")}


# ---- Images and recordings ----


def files_of(source: Mapping[str, Any], places: list[Place]) -> tuple[dict[Place, str], str]:
    """Return place → data URI of these examples, and what to say where there are none.

    Args:
        source: Arguments of `load_noisy_dataset` that say where the data lie.
        places: Split and index of the examples.
    """
    try:
        splits = load_noisy_dataset(**source, num_meta=0)
    except (ValueError, OSError) as error:
        return {}, f"The examples could not be read again ({reason_of(error)}); --dataset_name says where they are."
    kind = next((kind for kind in SHOW if kind in splits[TRAIN].features), None)
    if kind is None:
        return {}, ""
    rows = {split: {index: row for row, index in enumerate(dataset["index"][:])} for split, dataset in splits.items()}
    stored = {split: as_stored(dataset) for split, dataset in splits.items()}
    found = [(split, index) for split, index in places if index in rows.get(split, {})]
    shown = {place: SHOW[kind](stored[place[0]], rows[place[0]][place[1]], SIZES[kind]) for place in found}
    return {place: data_uri(content, TYPES[kind]) for place, content in shown.items() if content is not None}, ""


# ---- The page ----


def make_page(folder: Path, beside: Sequence[Path], source: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        folder: A run's.
        beside: Folders of runs to compare it with.
        source: Arguments of `load_noisy_dataset` that say where its data lie; without a name or a folder in them it is
            the data set that the run says it was trained on.

    Raises:
        LoadError: A folder is no run's.
    """
    run = read_run(folder)
    runs = [*map(read_run, beside), run]
    judged_by = {"known": all(each.are_labels_known for each in runs), "sentence": in_words(run.results)}
    pictures, suspects = pictures_of(runs, folder), None
    if (folder / REPORT_FILE).is_file():
        if source.get("name") is None and source.get("train_dir") is None:
            source = {**source, "name": run.results.get("dataset_name")}
        suspects = read_suspects(folder / REPORT_FILE, source, run.results)
        if suspects["has_images"]:
            pictures.pop(Path(SHEET).stem, None)  # the same images
    return rendered(
        TEMPLATE,
        title=f"{run.results.get('dataset_name', folder.resolve().name)}: report of a training",
        summary=summary_of_run(run),
        methods=[row for run in runs if (row := row_of_method(run)) is not None],
        judged_by=judged_by,
        suspects=suspects,
        facts=facts_of(run.results),
        pictures=lambda *names: as_html(pictures, *names),
        any_picture=lambda *names: any(name in pictures for name in names),
    )


def read_suspects(report_file: Path, source: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page says of a run's label report, with images or recordings where the data can be read.

    Args:
        report_file: Of the run.
        source: Arguments of `load_noisy_dataset` that say where the data lie.
        results: all_results.json of the run: why it could not tell how many labels are wrong, or about how many are.
    """
    report = read_report(report_file)
    report.info.description = str(results.get("label_report_doubt", ""))
    interval = interval_of(results)
    if "text" in report.features:  # which the report holds itself
        return suspects_of(report, {}, "", interval)
    finite = judged(report)
    places = [place_of(row) for row in finite.select(range(min(SHOWN, len(finite))))]
    return suspects_of(report, *files_of(source, places), interval)


def interval_of(results: Mapping[str, Any]) -> list[int] | None:
    """Return in which bounds the number of wrong labels probably lies, where a run says so."""
    bounds = results.get("wrong_labels_interval")
    is_pair = isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(bound, int) for bound in bounds)
    return bounds if is_pair else None


def summary_of_run(run: RunRecords) -> str:
    """Return one sentence on what was trained."""
    classes = f" that tells {len(run.class_names)} classes apart" if run.class_names else ""
    return (
        f"A classifier{classes} was trained by {run.name} on data some of whose labels may be wrong. This page says "
        "how good it is, which labels it doubts, and how it came to that."
    )
