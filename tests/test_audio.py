"""Audio classifiers of transformers: from folders of recordings to one that its pipeline loads, by the same step."""

import json

import brute_force
import numpy as np
import pytest
import run_famus
import torch
from hostile import refused
from models import build_audio_model
from scipy.io import wavfile
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, pipeline

from famus_hf import MWNet, load_famus, load_noisy_dataset, meta_gradient
from famus_hf.data.recordings import RecordingInputs, decode, resample

RATE = 2000  # Hz of the networks


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


def write_model(folder, kind="wav2vec2"):
    build_audio_model(kind, num_labels=3).save_pretrained(folder)
    make = {"ast": lambda: ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=16, max_length=32),
            "wav2vec2": lambda: Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)}  # fmt: skip
    make[kind]().save_pretrained(folder)
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
    refused(r"2 of 12 recordings can't be read \(index", RecordingInputs, data, extractor)


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


@pytest.mark.parametrize("kind", ["wav2vec2", "ast"])
def test_a_run_on_recordings_leaves_what_the_pipeline_loads(tmp_path, kind):
    data, model, run = write_recordings(tmp_path / "tones"), write_model(tmp_path / "model", kind), tmp_path / "run"
    run_famus.main([
        "--dataset_name", str(data), "--model_name_or_path", str(model), "--noise", "0.2", "--output_dir", str(run),
        "--num_train_epochs", "2", "--per_device_train_batch_size", "9", "--num_meta", "4", "--learning_rate", "1e-3",
        "--use_cpu", "--disable_tqdm", "true", "--max_length_seconds", "0.25",
    ])  # fmt: skip
    network, meta_learner, layer_sampler, extractor = load_famus(run)
    assert None not in (meta_learner, layer_sampler) and extractor.max_length_seconds == 0.25
    assert list(network.config.id2label.values()) == ["high", "low"]
    classify = pipeline("audio-classification", str(run))
    test = load_noisy_dataset(str(data), num_meta=0)["test"]
    waves = RecordingInputs(test, extractor).waves()
    assert max(map(len, waves)) == round(0.25 * RATE)
    names = test.features["label"].names
    right = [classify(wave)[0]["label"] == names[label] for wave, label in zip(waves, test["label"], strict=True)]
    assert json.loads((run / "all_results.json").read_text())["eval_accuracy"] == pytest.approx(np.mean(right))
    card = (run / "README.md").read_text()
    assert "pipeline_tag: audio-classification" in card and "An audio classifier trained on tones" in card
    assert "| recordings are cut after | 0.25 seconds |" in card and "trust_remote_code" not in card
