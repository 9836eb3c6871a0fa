"""A mended copy: in the form of the original, which stays as it is, with what undoes it beside."""

import csv
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk
from scipy.io import wavfile

from famus_hf import load_noisy_dataset
from famus_hf.cli import main as command
from famus_hf.data.fingerprint import fingerprint_of_splits
from famus_hf.data.labels.decisions import Decision, Decisions, read_decisions, write_decisions
from famus_hf.data.load import load_splits
from famus_hf.data.reviewed import decisions_on
from famus_hf.errors import SaveError, SettingsError
from famus_hf.review import mended as copies
from famus_hf.review.mended import whole_folder
from famus_hf.review.relabel import relabel
from tests.helpers.reviews import decisions_of, photos_and_run, report_on, truth_of, write_photos, write_run


def contents(folder):
    """Path → bytes of all files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def relabelled(capsys, *argv):
    command.main(["relabel", *map(str, argv)])
    return capsys.readouterr().out


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        command.main(["relabel", *map(str, argv)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and error.startswith("famus-hf relabel: error: ")
    return error


# ---- Folders of classes ----


def test_photos_are_copied_into_the_folders_of_their_classes_and_undone(tmp_path, capsys):
    data, run, splits = photos_and_run(tmp_path)
    before = contents(data)
    decisions = decisions_of(splits, 20)
    decisions.by_key |= decisions_of(splits, 4, split="test").by_key
    write_decisions(tmp_path / "decisions.csv", decisions)
    out = tmp_path / "cleaned"
    said = relabelled(capsys, run, tmp_path / "decisions.csv", "--out", out)
    changed = [own for own in decisions if own.label != own.reviewed_label]
    assert f"60 examples, {len(changed)} labels changed, 24 reviewed" in said and changed
    assert contents(data) == before, "the original has changed"
    rows = {row["file_name"]: row for row in csv.DictReader((out / "metadata.csv").open())}
    assert {path: content for path, content in contents(out).items() if path.endswith("png")}.keys() == rows.keys()
    moved = {own.example.split("/")[-1]: own for own in decisions}
    for path, row in rows.items():
        folder, name = path.split("/")
        own = moved.get(name)
        assert (out / path).read_bytes() == before[f"{row['original_label']}/{name}"]
        assert row["label"] == folder == (row["original_label"] if own is None else truth_of(name))
        assert row["reviewed"] == str(own is not None)
    copy = load_splits(name=str(out))
    kept = decisions_on(copy, out / ".review" / "decisions.csv")
    assert {own.reviewed_label == own.label == truth_of(own.example) for own in kept} == {True} and len(kept) == 24
    trained_on = load_noisy_dataset(str(out), meta_from=str(out / ".review" / "decisions.csv"))
    assert len(trained_on["meta"]) == len(kept.of_split("train"))
    back = tmp_path / "back"
    relabelled(capsys, run, out / ".review" / "undo.csv", "--out", back, "--dataset_name", out)
    assert {path: own for path, own in contents(back).items() if path.endswith("png")} == before
    again = {row["file_name"]: row["original_label"] for row in csv.DictReader((back / "metadata.csv").open())}
    assert again == {path: path.split("/")[0] for path in before}


def test_a_file_whose_name_is_taken_in_its_new_folder_gets_another(tmp_path):
    data, _, splits = photos_and_run(tmp_path)
    decisions = decisions_of(splits, 1)
    (wrong,) = decisions
    name = wrong.example.split("/")[-1]
    for label in {"ant", "bee", "cow"} - {wrong.label}:
        shutil.copy(data / next(iter(contents(data))), data / label / name)
    splits = load_splits(name=str(data))
    names = splits["train"].features["label"].names
    files = {split: [row["path"] for row in splits[split].data.column("image").to_pylist()] for split in splits}
    place = next(
        (split, index) for split, dataset in splits.items() for index, row in enumerate(dataset._indices.column(0))
        if files[split][row.as_py()].endswith(f"/{wrong.label}/{name}")
    )  # fmt: skip
    new = next(label for label in names if label != wrong.label)
    made = Decision(*place, wrong.example, wrong.label, new, new)
    relabel({"name": str(data)}, splits, Decisions(fingerprint_of_splits(splits), {place: made}), [], tmp_path / "out")
    stem = name.removesuffix(".png")
    assert (tmp_path / "out" / new / f"{stem}-from-{wrong.label}.png").is_file()
    assert (tmp_path / "out" / new / name).read_bytes() == (data / new / name).read_bytes()


def test_suggestions_are_taken_without_review_and_the_expected_mistakes_are_said(tmp_path, capsys):
    data, run, splits = photos_and_run(tmp_path)
    write_decisions(tmp_path / "two.csv", decisions_of(splits, 2))
    said = relabelled(capsys, run, tmp_path / "two.csv", "--auto", "0.85", "--out", tmp_path / "out")
    report = report_on(splits)
    wrong = sum(own["label"] != own["suggested_label"] for own in report)
    assert f"{wrong} labels changed, 2 reviewed" in said
    assert (
        f"{wrong - 2} suggestions of probability 0.85 or more were taken, of which {0.1 * (wrong - 2):.1f} are" in said
    )
    assert len(read_decisions(tmp_path / "out" / ".review" / "decisions.csv")) == 2, "others are not trusted"
    assert len(read_decisions(tmp_path / "out" / ".review" / "undo.csv")) == wrong
    assert "0 suggestions" in relabelled(capsys, run, "--auto", "0.95", "--out", tmp_path / "none")
    assert "--auto 99 is no probability" in refused(capsys, run, "--auto", "99", "--out", tmp_path / "x")
    earlier = report.remove_columns(["suggested_label", "suggestion_probability"])
    run = write_run(tmp_path / "earlier", data, earlier)
    assert "has no probabilities of suggestions" in refused(capsys, run, "--auto", "0.9", "--out", tmp_path / "x")


# ---- Tables and saved data sets ----

NAMES = ["=no", "yes"]


def table(size=40):
    """Texts whose label is wrong in each fifth row, with a column of their own."""
    texts = [f"{'good' if n % 2 else 'bad'} {n}" for n in range(size)]
    labels = [(n + (n % 5 == 0)) % 2 for n in range(size)]
    features = Features({"note": Value("int64"), "text": Value("string"), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"note": list(range(size)), "text": texts, "label": labels}, features=features)


def as_words(dataset):
    names = Dataset.from_dict({"label": [NAMES[label] for label in dataset["label"]]})
    return dataset.remove_columns("label").add_column("label", names["label"][:])


def write_saved(folder, dataset):
    DatasetDict({"train": dataset}).save_to_disk(str(folder))


WRITERS = {
    "csv": lambda folder, dataset: as_words(dataset).to_csv(str(folder / "all.csv"), index=False),
    "parquet": lambda folder, dataset: dataset.to_parquet(str(folder / "all.parquet")),
    "jsonl": lambda folder, dataset: as_words(dataset).to_json(str(folder / "all.jsonl")),
    "saved": write_saved,
}


@pytest.mark.parametrize("form", WRITERS)
def test_tables_and_saved_data_sets_are_mended_by_column_and_undone(tmp_path, form):
    data = tmp_path / "data"
    data.mkdir()
    WRITERS[form](data, table())
    before, splits = contents(data), load_splits(name=str(data))
    decisions = Decisions(fingerprint_of_splits(splits))
    for split, dataset in splits.items():
        names = dataset.features["label"].names
        for index, (text, label) in enumerate(zip(dataset["text"], dataset["label"], strict=True)):
            truth = NAMES[int(text.split()[1]) % 2]
            made = Decision(split, index, text, names[label], "", truth)
            decisions.by_key |= {made.key: made} if index % 2 == 0 else {}
    source = {"name": str(data)}
    mended = relabel(source, splits, decisions, [], tmp_path / "out")
    assert contents(data) == before and mended.examples == 40 and mended.changed > 0
    copy = load_noisy_dataset(str(tmp_path / "out"), meta_from=str(mended.decisions))
    rows = [row for split in ("train", "meta", "test") for row in copy[split]]
    names, reviewed = copy["train"].features["label"].names, {own.example for own in decisions}
    assert len(rows) == 40
    for row in rows:
        n = int(row["text"].split()[1])
        assert names[row["label"]] == NAMES[n % 2 if row["text"] in reviewed else (n + (n % 5 == 0)) % 2]
    loaded = load_from_disk(str(tmp_path / "out"))["train"] if form == "saved" else None
    if loaded is not None:
        assert loaded.column_names == ["note", "text", "label", "original_label", "reviewed"]
        assert loaded["original_label"][:] == table()["label"][:] and sum(loaded["reviewed"][:]) == len(decisions)
    here = {**source, "name": str(tmp_path / "out")}
    again = load_splits(**here)
    relabel(here, again, decisions_on(again, mended.undo), [], tmp_path / "back")
    back = load_splits(name=str(tmp_path / "back"))
    assert {tuple(own.values()) for split in back for own in back[split].select_columns(["text", "label"])} == {
        tuple(own.values()) for split in splits for own in splits[split].select_columns(["text", "label"])
    }


def next_class(splits):
    """Decisions that give the first four examples of each split the class after theirs."""
    decisions = Decisions(fingerprint_of_splits(splits))
    for split, dataset in splits.items():
        names = dataset.features["label"].names
        for index, label in enumerate(dataset["label"][:4]):
            decisions.by_key[split, index] = Decision(split, index, "", names[label], "", names[(label + 1) % 3])
    return decisions


def write_named_files(folder):
    """Tables of two splits that name images, beside a column of their own."""
    rows = [(f"img/{path.name}", path.parent.name) for path in write_photos(folder / "img").rglob("*.png")]
    for name, _ in rows:
        next((folder / "img").rglob(f"*/{name[4:]}")).rename(folder / name)
    for path in [path for path in (folder / "img").iterdir() if path.is_dir()]:
        path.rmdir()
    for split, part in (("train", sorted(rows)[:48]), ("test", sorted(rows)[48:])):
        table = "".join(f'{name},{label},"a ""b"", c"\n' for name, label in part)
        (folder / f"{split}.csv").write_text(f"image,label,note\n{table}")


def write_recordings(folder):
    """Recordings in folders of splits and classes."""
    for n in range(30):
        place = folder / ("train" if n < 20 else "test") / ["ant", "bee", "cow"][n % 3]
        place.mkdir(parents=True, exist_ok=True)
        wavfile.write(place / f"{n}.wav", 8000, np.full(80, n, dtype=np.int16))


@pytest.mark.parametrize("write", [write_named_files, write_recordings])
def test_files_in_two_splits_are_mended_and_undone(tmp_path, write):
    data = tmp_path / "data"
    write(data)
    before, splits = contents(data), load_splits(name=str(data))
    mended = relabel({"name": str(data)}, splits, next_class(splits), [], tmp_path / "out")
    copy = load_splits(name=str(tmp_path / "out"))
    assert contents(data) == before and mended.changed == 8
    assert {split: len(own) for split, own in copy.items()} == {split: len(own) for split, own in splits.items()}
    undo = decisions_on(copy, mended.undo)
    assert {own.split for own in undo} == {"train", "test"} and len(undo) == 8
    relabel({"name": str(tmp_path / "out")}, copy, undo, [], tmp_path / "back")
    back = load_splits(name=str(tmp_path / "back"))
    for split, own in splits.items():
        assert back[split]["label"][:] == own["label"][:]
        assert copy[split]["label"][:] != own["label"][:]
    after = contents(tmp_path / "back")
    assert all(after[path] == content for path, content in before.items() if not path.endswith("csv"))


def test_data_without_files_of_their_own_become_a_saved_data_set(tmp_path):
    splits = load_splits(name="digits")
    first = Decision("test", 3, "example 3", str(splits["test"]["label"][3]), "", "7")
    decisions = Decisions(fingerprint_of_splits(splits), {first.key: first})
    relabel({"name": "digits"}, splits, decisions, [], tmp_path / "out")
    saved = load_from_disk(str(tmp_path / "out"))
    assert saved["test"]["label"][3] == 7 and saved["test"]["reviewed"][:6] == [False] * 3 + [True] + [False] * 2
    assert np.array_equal(saved["test"]["original_label"][:], splits["test"]["label"][:])
    assert saved["train"]["label"][:] == splits["train"]["label"][:]


# ---- What is refused ----


def test_refusals_are_one_sentence_and_leave_nothing_behind(tmp_path, capsys):
    data, run, splits = photos_and_run(tmp_path)
    path, out = tmp_path / "decisions.csv", tmp_path / "out"
    write_decisions(path, decisions_of(splits, 5))
    assert "there is nothing to apply" in refused(capsys, run, "--out", out)
    assert "contradict each other" in refused(capsys, run, path, "--from", "me/x", "--out", out)
    assert "is there already and not empty" in refused(capsys, run, path, "--out", run)
    assert "lie in each other" in refused(capsys, run, path, "--out", data / "new")
    assert "put those of train_dir" in refused(
        capsys, run, path, "--out", out, "--train_dir", data, "--validation_dir", data
    )
    assert "not on these data" in refused(capsys, run, path, "--out", out, "--dataset_name", "digits")
    whole = path.read_text()
    path.write_text(whole[:-8])
    assert "cut off" in refused(capsys, run, path, "--out", out)
    strange = decisions_of(splits, 2)
    strange.by_key = {key: Decision(*key, "x", own.label, "", "dog") for key, own in strange.by_key.items()}
    write_decisions(path, strange)
    assert "1 labels of the decisions are no classes of the data ('dog')" in refused(capsys, run, path, "--out", out)
    other = decisions_of(splits, 2)
    other.by_key = {key: Decision(*key, "x", own.reviewed_label, "", "ant") for key, own in other.by_key.items()}
    write_decisions(path, other)
    assert "labels that were decided on are not those of the data" in refused(capsys, run, path, "--out", out)
    path.write_text(whole)
    (data / next(own.example for own in decisions_of(splits))).unlink()
    assert "not on these data, or the data have changed since" in refused(capsys, run, path, "--out", out)
    assert not out.exists() and not (tmp_path / ".unfinished").exists()
    (run / "all_results.json").write_text('{"dataset_name": "elsewhere"}')
    assert "says 'elsewhere', which is not here" in refused(capsys, run, path, "--out", out)


def test_a_full_disk_leaves_nothing_of_the_copy(tmp_path, monkeypatch):
    data, _, splits = photos_and_run(tmp_path)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copies.shutil, "copy2", full)
    with pytest.raises(SaveError, match=r"'out' could not be saved .*No space left"):
        relabel({"name": str(data)}, splits, decisions_of(splits, 5), [], tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".unfinished").exists()


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out", None) as folder:
        (folder / "a").write_text("b")
    assert contents(tmp_path / "out") == {"a": b"b"}
    with pytest.raises(SettingsError), whole_folder(tmp_path / "out", None):
        pass
