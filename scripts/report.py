"""One HTML page about a run, for people who do not read code: how good it is, which labels look wrong, and why.

    python scripts/report.py outputs/digits                                   # → outputs/digits/report.html
    python scripts/report.py outputs/digits --beside outputs/digits-plain outputs/digits-mw-net
    python scripts/report.py outputs/my_photos --dataset_name /data/my_photos

The page is self-contained: pictures, images and recordings are inside, it runs no script and fetches nothing. The
images or recordings (their first 5 seconds) of the most suspect examples come from the data set that the run was
trained on, where it is at hand; from another place with --dataset_name or --train_dir. Otherwise the page shows the
contact sheet that the run has left. The beginnings of texts are in the run's label report.
"""

import argparse
import base64
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from datasets import Dataset
from markupsafe import Markup
from scipy.io import wavfile

from famus_hf import load_noisy_dataset
from famus_hf.cli.arguments import SOURCE_FLAGS, source_of
from famus_hf.cli.results import format_rate
from famus_hf.data.inputs.audio_inputs import UNREADABLE, content_of, decode
from famus_hf.errors import reason_of
from famus_hf.reporting.figures.label_report import OF_REPORT, SHEET
from famus_hf.reporting.figures.run_records import RunRecords, read_run
from famus_hf.reporting.figures.runs import draw_runs
from famus_hf.reporting.label_report import TEXT_COLUMNS
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import FIGURES, REPORT_FILE

SHOWN = 40  # suspect examples
LISTED = 30  # classes, those with the most suspect labels
SIDE = 224  # pixels, of an image at most
SECONDS = 5  # of a recording at most
MAX_SAMPLES = 500_000  # of two bytes each
TEMPLATE = Path(__file__).with_name("report_template.html")


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---- Pictures ----


def pictures_of(runs: list[RunRecords], folder: Path) -> dict[str, tuple[str, str]]:
    """Name → data URI and caption, of what the runs have logged and of what the label report has drawn."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw_runs(runs, Path(scratch), ("svg",))
        found = {
            name: (data_uri((Path(scratch) / f"{name}.svg").read_bytes(), "image/svg+xml"), caption)
            for name, caption in drawn.items()
        }
    for file, caption in OF_REPORT.items():
        path = folder / FIGURES / file
        if path.is_file():
            found[path.stem] = (data_uri(path.read_bytes(), "image/png"), caption)
    return found


def as_html(pictures: Mapping[str, tuple[str, str]], *names: str) -> Markup:
    """The pictures with these names that are there."""
    figure = '<figure><img src="{0}" alt="{1}"><figcaption>{1}</figcaption></figure>'
    return Markup("\n").join(Markup(figure).format(*pictures[name]) for name in names if name in pictures)


# ---- Tables ----


def row_of_method(run: RunRecords) -> dict[str, str] | None:
    """Accuracies and time of a run; None where none was recorded."""
    accuracies = run.on_test_set("accuracy")
    if not accuracies:
        return None
    seconds = run.results.get("train_seconds") or max(run.series("train_seconds").values(), default=None)
    last = run.results.get("eval_accuracy", list(accuracies.values())[-1])
    return {
        "name": run.name,
        "last": f"{100 * last:.1f} %",
        "best": f"{100 * max(accuracies.values()):.1f} %",
        "seconds": "–" if seconds is None else in_words(seconds),
    }


def in_words(seconds: float) -> str:
    """A time as people say it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def suspects_of(report: Dataset, files: Mapping[int, str], note: str) -> dict[str, Any]:
    """What the page says of the label report.

    Args:
        report: See `famus_hf.reporting.label_report`.
        files: Index → data URI of an image or a recording.
        note: Why there are none.
    """
    labels, names = report["label"][:], report.features["label"]
    predicted, sound = report["predicted_label"][:], report["clean_probability"][:]
    suspect = [chance < 0.5 for chance in sound]
    per_class, wrong, looks_like = Counter(labels), Counter(), {}
    for label, other, is_suspect in zip(labels, predicted, suspect, strict=True):
        if is_suspect:
            wrong[label] += 1
            looks_like.setdefault(label, Counter())[other] += 1
    classes = [
        {
            "name": names.int2str(label),
            "count": per_class[label],
            "suspect": f"{count} ({100 * count / per_class[label]:.1f} %)",
            "other": ", ".join(f"{names.int2str(o)} ({n})" for o, n in looks_like[label].most_common(2)),
        }
        for label, count in wrong.most_common(LISTED)
    ]
    examples = [example_of(row, names, files) for row in report.select(range(min(SHOWN, len(report))))]
    return {
        "sentence": f"Of {len(report)} training examples, {sum(suspect)} ({100 * sum(suspect) / len(report):.1f} %) "
        "have a label that is more likely wrong than right.",
        "classes": classes,
        "examples": examples,
        "has_images": any(example["image"] for example in examples),
        "note": note,
    }


def example_of(row: dict[str, Any], names: Any, files: Mapping[int, str]) -> dict[str, Any]:
    file = files.get(row["index"], "")
    return {
        "index": row["index"],
        "where": row.get("file") or f"example {row['index']}",
        "given": names.int2str(row["label"]),
        "predicted": names.int2str(row["predicted_label"]),
        "chance": f"{100 * row['clean_probability']:.1f} %",
        "image": file if file.startswith("data:image") else None,
        "sound": file if file.startswith("data:audio") else None,
        "text": " / ".join(row[name] for name in TEXT_COLUMNS if row.get(name)),
    }


def facts_of(results: Mapping[str, Any]) -> dict[str, str]:
    """What all_results.json says, in words."""
    found = {
        "data set": results.get("dataset_name"),
        "method": results.get("method"),
        "labels known to be wrong": format_rate(results.get("realised_noise_rate")),
        "labels that are wrong, as estimated": format_rate(results.get("estimated_noise_rate_by_label_report")),
        "examples with trusted labels": results.get("meta_set_size") if results.get("meta_set") == "clean" else None,
        "training steps": results.get("global_step"),
        "seconds of a step": results.get("train_seconds_per_step") and f"{results['train_seconds_per_step']:.4f}",
        "layers that carried the meta gradient, mean": results.get("mean_active_layers")
        and f"{results['mean_active_layers']:.1f} of {len(results.get('share_of_steps_on', {}))}",
        "seed": results.get("seed"),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "–")}


# ---- Images and recordings ----


def files_of(options: argparse.Namespace, dataset_name: Any, wanted: list[int]) -> tuple[dict[int, str], str]:
    """Index → data URI, of these examples of the training set; and what to say where there are none."""
    if options.dataset_name is None and options.train_dir is None:
        options.dataset_name = dataset_name
    try:
        train = load_noisy_dataset(**source_of(options), num_meta=0)["train"]
    except (ValueError, OSError) as error:
        return {}, f"The examples could not be read again ({reason_of(error)}); --dataset_name says where they are."
    kind = next((kind for kind in SHOW if kind in train.features), None)
    if kind is None:
        return {}, ""
    rows = {index: row for row, index in enumerate(train["index"][:])}
    found = {index: SHOW[kind](train[rows[index]][kind]) for index in wanted if index in rows}
    return {index: uri for index, uri in found.items() if uri is not None}, ""


def _thumbnail(image: Any) -> str:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, format="png")
    return data_uri(file.getvalue(), "image/png")


def _clip(recording: dict[str, Any] | None) -> str | None:
    """The beginning of a recording as WAV of one channel; None where it can't be read."""
    try:
        samples, rate = decode(content_of(recording))
    except UNREADABLE:
        return None
    samples = samples[: min(SECONDS * rate, MAX_SAMPLES)].clip(-1, 1)
    file = io.BytesIO()
    wavfile.write(file, rate, (samples * 32767).astype(np.int16))
    return data_uri(file.getvalue(), "audio/wav")


SHOW: dict[str, Callable[[Any], str | None]] = {"image": _thumbnail, "audio": _clip}


# ---- The page ----


def make_page(options: argparse.Namespace) -> str:
    """The HTML. Raises ValueError where the folder is no run's."""
    own = read_run(options.run)
    runs = [*(read_run(folder) for folder in options.beside), own]
    pictures, results = pictures_of(runs, options.run), own.results
    suspects, report_file = None, options.run / REPORT_FILE
    if report_file.is_file():
        with tempfile.TemporaryDirectory() as cache:
            report = Dataset.from_parquet(str(report_file), cache_dir=cache, keep_in_memory=True)
        is_text = "text" in report.features  # which the report holds itself
        wanted = report["index"][:SHOWN]
        files, note = ({}, "") if is_text else files_of(options, results.get("dataset_name"), wanted)
        if files:
            pictures.pop(Path(SHEET).stem, None)  # the same images
        suspects = suspects_of(report, files, note)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return page.render(
        title=f"{results.get('dataset_name', options.run.resolve().name)}: report of a training",
        summary=summary_of_run(own),
        methods=[row for run in runs if (row := row_of_method(run)) is not None],
        suspects=suspects,
        facts=facts_of(results),
        pictures=lambda *names: as_html(pictures, *names),
        any_picture=lambda *names: any(name in pictures for name in names),
    )


def summary_of_run(run: RunRecords) -> str:
    """One sentence on what was trained."""
    classes = f" that tells {len(run.class_names)} classes apart" if run.class_names else ""
    return (
        f"A classifier{classes} was trained by {run.name} on data some of whose labels may be wrong. This page says "
        "how good it is, which labels it doubts, and how it came to that."
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_argument("--beside", nargs="+", type=Path, default=[], metavar="RUN", help="runs to compare it with")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the run's folder)")
    for flag in SOURCE_FLAGS:
        parser.add_argument(f"--{flag}", help="as in run_famus.py")
    options = parser.parse_args(argv)
    out = options.out or options.run / "report.html"
    try:
        page = make_page(options)
        with atomic_write(out) as path:
            path.write_text(page, encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"report.py: error: {' '.join(str(error).split())}")
    print(f"{out} ({len(page) / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(sys.argv[1:])
