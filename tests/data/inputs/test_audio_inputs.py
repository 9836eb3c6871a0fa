"""Audio classifiers of transformers: from folders of recordings to one that its pipeline loads, by the same step."""

import base64
import functools
import json
import re
import struct
import sys

import numpy as np
import pytest
import release
import torch
from datasets import Dataset
from safetensors.torch import load_file
from scipy.io import wavfile
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor, pipeline

from famus_hf import FaMUSTrainer, MWNet, load_famus, load_noisy_dataset, meta_gradient
from famus_hf.cli import arguments, label_report
from famus_hf.cli import report as report_command
from famus_hf.cli import run as run_famus
from famus_hf.cli import run_setup as set_up_run
from famus_hf.data.inputs.audio_inputs import RecordingInputs, decode, resample
from famus_hf.reporting.shown import clip
from tests.helpers import brute_force
from tests.helpers.command_line import in_this_process
from tests.helpers.datasets import write_texts
from tests.helpers.hostile import refused
from tests.helpers.models import build_audio_model
from tests.helpers.saved_runs import RATE, write_audio_model
from tests.helpers.trainers import learned, make_args


def tone(pitch, seconds=0.3, rate=RATE, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.05, round(seconds * rate))
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(len(noise)) / rate) + noise).astype(np.float32)


def write_recordings(folder, size=40):
    """A folder for each class, in train/ and test/, of 16 bit at twice the networks' rate."""
    for split, count, start in (("train", size, 0), ("test", 12, 1000)):
        for number in range(count):
            name, pitch = (("low", 100), ("high", 600))[number % 2]
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            wave = tone(pitch, 0.2 + 0.01 * (number % 7), 2 * RATE, start + number)
            wavfile.write(folder / split / name / f"{number}.wav", 2 * RATE, (wave * 32767).astype(np.int16))
    return folder


@pytest.mark.parametrize("kind, size", [(np.uint8, 1 / 64), (np.int16, 1e-4), (np.int32, 1e-6), (np.float32, 0)])
def test_every_kind_of_wav_is_decoded_to_the_same_wave(tmp_path, kind, size):
    wave = np.clip(tone(100), -0.9, 0.9)
    stored = wave if kind is np.float32 else wave * 127 + 128 if kind is np.uint8 else wave * float(np.iinfo(kind).max)
    wavfile.write(tmp_path / "a.wav", RATE, stored.astype(kind))
    found, rate = decode((tmp_path / "a.wav").read_bytes())
    assert rate == RATE and found.dtype == np.float32 and np.abs(found - wave).max() <= size
    wavfile.write(tmp_path / "b.wav", RATE, np.stack([wave, -wave], 1))
    assert np.abs(decode((tmp_path / "b.wav").read_bytes())[0]).max() == 0, "two channels are mixed down"


def test_resampling_keeps_the_pitch():
    found = resample(tone(100, 1.0, 2 * RATE), 2 * RATE, RATE)
    assert len(found) == RATE and np.abs(np.fft.rfft(found)).argmax() == 100


def test_recordings_that_can_not_be_read_are_counted_and_named(tmp_path):
    write_recordings(tmp_path, 12)
    (tmp_path / "train" / "low" / "0.wav").write_bytes(b"RIFF broken")
    wavfile.write(tmp_path / "train" / "high" / "1.wav", RATE, np.zeros(0, np.int16))
    data = load_noisy_dataset(str(tmp_path), meta_set="pseudo-clean")["train"]
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    extractor.max_length_seconds = 1.0
    words = r"2 of 12 recordings of the meta set can't be read \((low/0|high/1).wav, (low/0|high/1).wav\): remove"
    refused(words, RecordingInputs, data, extractor, "the meta set")


def test_features_that_do_not_fit_in_memory_are_not_made_before_training(tmp_path, monkeypatch):
    write_recordings(tmp_path, 12)
    made = []
    extract = RecordingInputs._extract
    monkeypatch.setattr("famus_hf.data.inputs.model_inputs.MEMORY_LIMIT", 0)
    monkeypatch.setattr(RecordingInputs, "_extract", lambda self, wave: made.append(wave) or extract(self, wave))
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    extractor.max_length_seconds = 1.0
    inputs = RecordingInputs(load_noisy_dataset(str(tmp_path), num_meta=0)["train"], extractor)
    assert len(made) == 1 and len(inputs.lengths) == 12, "the first one shows that they do not fit"
    assert len(inputs[3]["input_values"]) == inputs.lengths[3] and len(made) == 2


def make_trainer_of(folder, short, splits=("train", "test"), **settings):
    """A trainer on recordings of which two in each of these splits have so few samples."""
    write_recordings(folder, 24)
    for split in splits:
        for number in (2, 4):
            wavfile.write(folder / split / "low" / f"{number}.wav", RATE, np.arange(short, dtype=np.int16))
    data = load_noisy_dataset(str(folder), num_meta=0)
    is_weighed = settings.get("meta_learner") != "none"
    return FaMUSTrainer(
        build_audio_model(), make_args(folder / "run", **settings), None, data["train"],
        meta_dataset=data["train"].filter(lambda row: row["index"] < 2) if is_weighed else None,
        eval_dataset={"all": data["test"]}, processing_class=Wav2Vec2FeatureExtractor(sampling_rate=RATE),
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{"meta_learner": "none"}, {}], ids=["plain", "weighed"])
@pytest.mark.parametrize("split, size", [("train", 24), ("test", 12)])
def test_recordings_shorter_than_a_frame_are_counted_and_named_before_training(tmp_path, split, size, settings):
    name = {"train": "the training set", "test": "the evaluation set 'all'"}[split]
    words = (
        rf"2 of {size} recordings of {name} are too short for the network \(low/[24].wav, low/[24].wav; the shortest "
        "has 19 samples at 2000 Hz"
    )
    refused(words, lambda: make_trainer_of(tmp_path, 19, [split], **settings))


def test_a_batch_of_recordings_shorter_than_a_masked_stretch_trains(tmp_path):
    trainer = make_trainer_of(tmp_path, 20, ["train"], max_steps=2, per_device_train_batch_size=1, meta_learner="none")
    short = [row for row, length in enumerate(trainer.train_dataset.lengths) if length == 20]
    assert trainer.model.config.mask_time_length == 2 and len(short) == 2, "one frame each"
    trainer.train_dataset = torch.utils.data.Subset(trainer.train_dataset, short)
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["input_values"].shape == (1, 36) and not batch["input_values"][:, 20:].any(), "two frames"


def test_a_rate_that_nobody_records_at_is_refused_before_a_filter_of_its_length_is_made(tmp_path):
    wavfile.write(tmp_path / "a.wav", RATE, (tone(100) * 32767).astype(np.int16))
    content = (tmp_path / "a.wav").read_bytes()
    for rate in (0, 10**9):
        header = content[:24] + struct.pack("<II", rate, 2 * rate)
        refused(f"it claims {rate} samples a second", decode, header + content[32:])


def waves_of(folder, **columns):
    data = load_noisy_dataset(str(folder), num_meta=0, **columns)["train"]
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    extractor.max_length_seconds = 1.0
    return dict(zip(data["index"], RecordingInputs(data, extractor).waves(), strict=True))


@pytest.mark.parametrize("kind", ["struct", "paths"])
def test_a_table_of_recordings_is_as_good_as_a_folder(tmp_path, kind):
    folder = write_recordings(tmp_path / "folder", 12)
    (tmp_path / "table").mkdir()
    for split in ("train", "test"):
        paths = sorted((folder / split).rglob("*.wav"))
        stored = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        if kind == "paths":
            stored = [f"{split}/{path.parent.name}/{path.name}" for path in paths]
            (folder / split).rename(tmp_path / "table" / split)
        rows = Dataset.from_dict({"audio": stored, "label": [path.parent.name for path in paths]})
        rows.to_parquet(str(tmp_path / "table" / f"{split}.parquet"))
    expected = waves_of(write_recordings(tmp_path / "again", 12))
    found = waves_of(tmp_path / "table", audio_column_name="audio")
    assert found.keys() == expected.keys() and all(np.array_equal(found[row], expected[row]) for row in found)


@pytest.mark.parametrize("ending, size", [("flac", 1e-4), ("ogg", 0.2)])
def test_other_formats_are_read_by_soundfile_and_without_it_it_is_said_what_to_install(
    tmp_path, monkeypatch, ending, size
):
    soundfile = pytest.importorskip("soundfile")
    waves = {}
    for split in ("train", "test"):
        for number in range(8):
            path = tmp_path / split / ("low", "high")[number % 2] / f"{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            waves[path] = tone(100, seed=number + 100 * (split == "test"))
            soundfile.write(path, waves[path], RATE)
    found = waves_of(tmp_path)
    expected = [wave for path, wave in sorted(waves.items()) if "train" in path.parts]
    for row, wave in found.items():
        assert np.abs(wave - expected[row]).max() < size and np.corrcoef(wave, expected[row])[0, 1] > 0.98
    monkeypatch.setitem(sys.modules, "soundfile", None)
    words = r"none of 8 recordings of the data set can be read \(formats other than WAV need pip install soundfile"
    refused(words, waves_of, tmp_path)


def test_spec_augment_masks_by_numpy_and_is_the_same_in_all_passes_over_a_batch():
    model, mw_net = build_audio_model().double().train(), MWNet(initial_scale=1.0).double()
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    batches = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        waves = torch.randn(4, 400, generator=generator, dtype=torch.float64)
        batches.append({"input_values": waves, "labels": torch.randint(2, (4,), generator=generator)})
    torch.manual_seed(7)
    np.random.seed(7)
    found = meta_gradient(model, mw_net, *batches, learning_rate=0.1, derivative="finite")
    expected = brute_force.mw_net_gradient(model, mw_net, *batches, 0.1)
    size = max(gradient.abs().max() for gradient in expected.values())
    assert size > 1e-7
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * size, name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Kind of network → folder of a run; the data, and the network that it started from, lie beside."""
    return functools.cache(lambda kind: train(tmp_path_factory.mktemp(kind), kind))


def train(root, kind):
    data, model = write_recordings(root / "tones"), write_audio_model(root / "model", kind)
    run_famus.main([
        "--dataset_name", str(data), "--model_name_or_path", str(model), "--noise", "0.2",
        "--output_dir", str(root / "run"), "--num_train_epochs", "2", "--per_device_train_batch_size", "9",
        "--num_meta", "4", "--learning_rate", "1e-3", "--use_cpu", "--disable_tqdm", "true",
        "--max_length_seconds", "0.25",
    ])  # fmt: skip
    return root / "run"


@pytest.mark.parametrize("kind", ["wav2vec2", "ast"])
def test_a_run_on_recordings_leaves_what_the_pipeline_loads(trained, kind):
    run = trained(kind)
    network, meta_learner, layer_sampler, extractor = load_famus(run)
    assert None not in (meta_learner, layer_sampler) and extractor.max_length_seconds == 0.25
    assert list(network.config.id2label.values()) == ["high", "low"]
    classify = pipeline("audio-classification", str(run))
    test = load_noisy_dataset(str(run.parent / "tones"), num_meta=0)["test"]
    waves = RecordingInputs(test, extractor).waves()
    assert max(map(len, waves)) == round(0.25 * RATE)
    names = test.features["label"].names
    right = [classify(wave)[0]["label"] == names[label] for wave, label in zip(waves, test["label"], strict=True)]
    assert json.loads((run / "all_results.json").read_text())["eval_accuracy"] == pytest.approx(np.mean(right))


def test_the_card_of_an_audio_classifier_says_so(trained):
    card = (trained("wav2vec2") / "README.md").read_text()
    for words in (
        "pipeline_tag: audio-classification", "type: audio-classification", "An audio classifier trained on tones",
        'pipeline("audio-classification", "run")', "| recordings are cut after | 0.25 seconds |",
    ):  # fmt: skip
        assert words in card, words
    assert "image" not in card.lower() and "augmentation" not in card and "trust_remote_code" not in card


def test_the_feature_encoder_stays_as_it_was_pretrained_unless_told_otherwise(trained):
    run = trained("wav2vec2")
    before, after = (load_file(folder / "model.safetensors") for folder in (run.parent / "model", run))
    moved = {name for name in before if before[name].shape == after[name].shape}
    moved = {name for name in moved if not torch.equal(before[name], after[name])}
    assert moved and not [name for name in moved if "feature_extractor" in name]
    chosen = json.loads((run / "all_results.json").read_text())["share_of_steps_on"]
    assert chosen and not [name for name in chosen if "feature_extractor" in name], "it is no layer to choose"
    flags = ["--dataset_name", "x", "--model_name_or_path", str(run.parent / "model"), "--use_cpu"]
    data = {"train": load_noisy_dataset(str(run.parent / "tones"), num_meta=0)["train"]}
    for further, expected in (([], False), (["--freeze_feature_encoder", "false"], True)):
        model_args, _, args = arguments.parse_arguments([*flags, *further])
        model, _ = set_up_run.build_model(model_args, data, args)
        assert {p.requires_grad for p in model.wav2vec2.feature_extractor.parameters()} == {expected}


def test_the_label_report_names_the_files_the_most_suspect_first(trained, tmp_path, capsys):
    run = trained("wav2vec2")
    report = Dataset.from_parquet(str(run / "label_report.parquet"), cache_dir=str(tmp_path / "cache"))
    paths = sorted((run.parent / "tones" / "train").rglob("*.wav"))
    assert report["file"][:] == [f"{paths[i].parent.name}/{paths[i].name}" for i in report["index"]]
    assert report["clean_probability"][:] == sorted(report["clean_probability"]) and len(report) == 36
    assert not (run / "figures" / "suspect_labels.png").exists()
    label_report.main([
        "--model", str(run), "--dataset_name", str(run.parent / "tones"), "--noise_file", str(run / "noise.parquet"),
        "--csv", "--use_cpu", "--output_dir", str(tmp_path / "report"),
    ])  # fmt: skip
    rows = (tmp_path / "report" / "label_report.csv").read_text(encoding="utf-8-sig").splitlines()
    assert rows[0].startswith("split,index,file,label,")
    assert {row.split(",")[2] for row in rows[1:]} == set(report["file"])
    assert "predicted_label" in capsys.readouterr().out


def test_the_page_about_a_run_plays_the_suspect_recordings(trained, tmp_path):
    run = trained("wav2vec2")
    report_command.main([str(run), "--dataset_name", str(run.parent / "tones"), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    found = re.findall(r'<audio controls src="data:audio/wav;base64,([^"]*)"></audio><br>\s*(\S+)<br>', text)
    report = Dataset.from_parquet(str(run / "label_report.parquet"), cache_dir=str(tmp_path / "cache"))
    assert [file for _, file in found] == report["file"][:] and "media-src data:;" in text
    for content, file in found[:3]:
        wave, rate = decode(base64.b64decode(content))
        expected, _ = decode((run.parent / "tones" / "train" / file).read_bytes())
        assert rate == 2 * RATE and np.abs(wave - expected).max() < 1e-4


def test_a_clip_is_five_seconds_of_at_most_a_megabyte_and_what_is_broken_has_none(tmp_path):
    for rate, seconds in ((RATE, 5), (192_000, 500_000 / 192_000)):
        wavfile.write(tmp_path / "long.wav", rate, np.zeros((6 * rate, 2), np.float32))
        content = clip([{"audio": {"bytes": None, "path": str(tmp_path / "long.wav")}}], 0, 5)
        assert len(decode(content)[0]) == round(seconds * rate) and len(content) < 1.1e6
    broken = [{"audio": {"bytes": b"RIFF broken", "path": None}}, {"audio": None}]
    assert clip(broken, 0, 5) is clip(broken, 1, 5) is None


def test_a_release_of_an_audio_classifier_is_proven_by_its_pipeline(trained, tmp_path, capsys, monkeypatch):
    run = trained("wav2vec2")
    monkeypatch.setattr(release, "in_clean_process", in_this_process)
    flags = ["--dataset_name", str(run.parent / "tones"), "--release_dir", str(tmp_path), "--name", "tones-famus"]
    release.main(["--run", str(run), *flags])
    printed = capsys.readouterr().out
    assert "by the pipeline, on 12 recordings" in printed and "Wav2Vec2FeatureExtractor" in printed
    assert 'pipeline("audio-classification", "tones-famus")' in (tmp_path / "tones-famus" / "README.md").read_text()


def test_a_stopped_run_on_recordings_resumes_bit_for_bit_masks_included(trained, tmp_path):
    """Wav2Vec2 masks its inputs by numpy's generator, and drops out by torch's."""
    tones, extractor = str(trained("wav2vec2").parent / "tones"), Wav2Vec2FeatureExtractor(sampling_rate=RATE)
    data = load_noisy_dataset(tones, noise=0.2, num_meta=4)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "max_length_seconds": 0.25}

    def make():
        args = make_args(tmp_path, **settings)
        return FaMUSTrainer(
            build_audio_model(), args, None, data["train"], meta_dataset=data["meta"], processing_class=extractor
        )

    whole, again = make(), make()
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected, found = learned(whole), learned(again)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "checkpoint-2").max_length_seconds == 0.25


# ---- What is refused ----


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "give a network for audio-classification with --model_name_or_path"),
        (["--backbone", "tiny"], "and no --backbone"),
        (["--model_name_or_path", "MODEL", "--two_networks"], "is for images, and the data are recordings"),
        (["--model_name_or_path", "MODEL", "--streaming"], "leave --streaming out"),
        (["--model_name_or_path", "MODEL", "--noise_type", "instance"], "these data have no images"),
        (["--model_name_or_path", "MODEL", "--image_size", "8"], "is about images, and these are recordings"),
        (["--model_name_or_path", "MODEL", "--max_seq_length", "8"], "is about texts, and these are recordings"),
        (["--model_name_or_path", "MODEL", "--max_length_seconds", "0"], "must be greater than 0"),
        (["--model_name_or_path", "MODEL", "--audio_column_name", "label"], "both the audio and the label column"),
        (["--model_name_or_path", "MODEL", "--audio_column_name", "sound"], "audio column 'sound' is not in"),
        (["--model_name_or_path", "MODEL", "--dataset_name", "TEXTS"], "could not be loaded"),
        (["--model_name_or_path", "NOWHERE"], "could not be loaded"),
    ],
    ids=str,
)
def test_wrong_input_is_one_sentence_before_training(trained, tmp_path, capsys, flags, words):
    root = trained("wav2vec2").parent
    places = {"MODEL": root / "model", "NOWHERE": root / "nowhere"}
    if "TEXTS" in flags:
        places["TEXTS"] = write_texts(tmp_path / "texts")
    flags = ["--dataset_name", str(root / "tones"), *(str(places.get(flag, flag)) for flag in flags)]
    with pytest.raises(SystemExit) as ended:
        run_famus.main(["--output_dir", str(tmp_path / "out"), "--use_cpu", "--noise", "0.2", *flags])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and said.startswith("run_famus.py: error: ") and words in said, said
