"""What a trainer leaves beside its model: the label report, and the pictures of its model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from famus_hf.core.meta_learners import raw_weights
from famus_hf.data.inputs.convert import as_model_inputs, raw_modality
from famus_hf.data.media.modalities import TEXT
from famus_hf.data.per_example import evaluate_examples
from famus_hf.hub.load import FIGURES
from famus_hf.reporting.figures.label_report import CURVE, HISTOGRAM, SHEET, draw_report
from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.runs import PICTURES, draw_runs
from famus_hf.reporting.label_report import REPORT_FILE, class_names, label_report
from famus_hf.storage.atomic import atomic_write

if TYPE_CHECKING:
    from famus_hf.trainer.trainer import FaMUSTrainer

OF_REPORT = {  # picture of a label report → what it shows
    CURVE: "Weight that the meta-net gives to an example, by its loss.",
    HISTOGRAM: "Weights of the training examples after training.",
    SHEET: "The training examples whose labels are most suspect: index, given and predicted label.",
}
ON_CARD = tuple(name for name in PICTURES if name not in ("test_loss", "clean_weights"))
TEXT_COLUMNS = ("text", "text_pair")
SHOWN_LENGTH = 200  # characters of a text in a report


def report_of(trainer: "FaMUSTrainer", dataset: Any = None) -> Dataset:
    """See `FaMUSTrainer.label_report`."""
    inputs = trainer.train_dataset if dataset is None else as_model_inputs(dataset, trainer.processing_class)
    found = evaluate_examples(trainer, inputs, trainer.base_loss, with_probabilities=True, progress="Examining labels")
    probabilities = cast(np.ndarray, found.probabilities)
    return label_report(
        found.labels,
        probabilities,
        found.losses,
        class_names(trainer.model, probabilities.shape[1]),
        index=found.index,
        details=details_of(inputs),
        weights=raw_weights(trainer.meta_learner, found.losses),
        clean_labels=found.clean_labels,
    )


def save_report(trainer: "FaMUSTrainer", dataset: Any, folder: Path) -> Dataset:
    """See `FaMUSTrainer.save_label_report`."""
    report = report_of(trainer, dataset)
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / REPORT_FILE) as path:
            report.to_parquet(path)
        raw = trainer.train_dataset if dataset is None else dataset
        draw_report(report, raw, lambda losses: raw_weights(trainer.meta_learner, losses), folder)
    return report


def draw_records(trainer: "FaMUSTrainer", beside: Sequence[RunRecords] = ()) -> dict[str, str]:
    """Draws what the run has logged into `figures/` of its folder, by the first process.

    Args:
        trainer: After its training.
        beside: Runs that it is compared with.

    Returns:
        File → caption, of these pictures and of those of the label report of this training.
    """
    folder = Path(str(trainer.args.output_dir))
    drawn = draw_runs([*beside, trainer.diagnostics.records()], folder / FIGURES, ("png",), ON_CARD)
    captions = {f"{name}.png": caption for name, caption in drawn.items()} | OF_REPORT
    return {
        f"{FIGURES}/{name}": caption
        for name, caption in captions.items()
        if trainer.is_of_this_run(folder / FIGURES / name)
    }


def details_of(dataset: Any) -> dict[str, list[str | None]]:
    """What tells a reader which example it is: column of a report → values."""
    raw = getattr(dataset, "raw", dataset)
    modality = raw_modality(raw)
    if not isinstance(raw, Dataset) or modality is None:
        return {}
    if modality is TEXT:
        return {name: [_beginning(text) for text in raw[name]] for name in TEXT_COLUMNS if name in raw.column_names}
    names = _file_names(raw, modality.column)
    return {} if names is None else {"file": names}


def _beginning(text: str | None) -> str | None:
    return text if text is None or len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 1]}…"


def _file_names(raw: Dataset, kind: str) -> list[str | None] | None:
    """Folder and name of each example's file, as in `cats/7.png`; None where they have no files.

    The files are not read: of a data set that holds them itself, they would be all of its bytes.
    """
    column = raw.data.column(kind)
    if not pa.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return None
    paths = pc.struct_field(column, "path")
    if raw._indices is not None:
        paths = paths.take(raw._indices.column(0))
    names = [None if path is None else "/".join(Path(path).parts[-2:]) for path in paths.to_pylist()]
    return names if any(names) else None
