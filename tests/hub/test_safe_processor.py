"""Tokenizers and feature extractors of somebody else: refused in one sentence, and nothing runs."""

import json
import re

import pytest

from famus_hf import load_famus
from tests.helpers.hostile import refused
from tests.helpers.saved_runs import write_audio_model, write_text_model

TOKENIZERS = {
    "code of its own": (
        {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"},
        "has a 'auto_map'",
    ),
    "another file": ({"vocab_file": "/etc/passwd"}, "has a 'vocab_file', and no code or file"),
    "a tokenizer with a vocabulary of its own": (
        {"tokenizer_class": "CanineTokenizer"},
        "is 'CanineTokenizer', which is none",
    ),
    "a class that nobody knows": ({"tokenizer_class": "Evil"}, "is 'Evil', which is none that tokenizer.json holds"),
    "no word for a class": ({"tokenizer_class": [1]}, "is '[1]', which is none"),
    "a size of 10^12": ({"cutoff": 10**12}, "beyond 1048576"),
    "arguments": ({"init_inputs": ["/etc/passwd"]}, "has a 'init_inputs'"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_hostile_tokenizers_are_refused_and_nothing_runs(tmp_path, kind):
    changes, words = TOKENIZERS[kind]
    write_text_model(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    refused(re.escape(words), load_famus, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_is_read_from_json_inside_the_folder_alone(tmp_path):
    write_text_model(tmp_path / "sound")
    load_famus(tmp_path / "sound")
    secret = tmp_path / "secret.json"
    for name, content, words in (
        ("tokenizer.json", None, "there is no tokenizer.json, and vocabularies in other formats are not read"),
        ("tokenizer.json", b"{", "holds no tokenizer that can be loaded"),
        ("tokenizer.json", b" " * 2**27, "and at most 67108864 are read"),
        ("tokenizer_config.json", b"[1]", "holds a list and no object"),
        ("tokenizer.json", secret, "a link that leaves the folder"),
    ):
        write_text_model(tmp_path / "hostile")
        path = tmp_path / "hostile" / name
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            secret.write_bytes((tmp_path / "sound" / name).read_bytes())
            path.symlink_to(secret)
        refused(words, load_famus, tmp_path / "hostile")
        path.unlink(missing_ok=True)


LOUD = {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 10**6}


EXTRACTORS = {
    "code of its own": (
        {"auto_map": {"AutoFeatureExtractor": "evil.E"}, "feature_extractor_type": "E"},
        "no feature extractor that can be loaded",
    ),
    "a class that nobody knows": ({"feature_extractor_type": "Evil"}, "no feature extractor that can be loaded"),
    "filters of 10^6 bins": (LOUD, "preprocessor_config.json has a 'num_mel_bins' beyond 4096"),
    "a size of 10^12": ({"max_length": 10**12}, "has a 'max_length' beyond 1048576"),
    "frames that take a gigabyte each": ({"max_length": 10**6}, "has a 'max_length' beyond 32768"),
    "no rate": ({"sampling_rate": 0}, "its sampling_rate is '0'"),
    "a word for a rate": ({"sampling_rate": "fast"}, "its sampling_rate is 'fast'"),
}


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_hostile_feature_extractors_are_refused_and_nothing_runs(tmp_path, kind):
    changes, words = EXTRACTORS[kind]
    path = write_audio_model(tmp_path) / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    refused(re.escape(words), load_famus, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_feature_extractor_is_read_from_json_inside_the_folder_alone(tmp_path):
    sound = (write_audio_model(tmp_path / "sound") / "preprocessor_config.json").read_bytes()
    (tmp_path / "secret.json").write_bytes(sound)
    folder = write_audio_model(tmp_path / "hostile")
    path = folder / "preprocessor_config.json"
    for content, words in ((b"{", "can't be read as JSON"), (b"[1]", "holds a list and no object")):
        path.write_bytes(content)
        refused(words, load_famus, folder)
    path.unlink()
    path.symlink_to(tmp_path / "secret.json")
    refused("a link that leaves the folder", load_famus, folder)
    path.unlink()
    path.write_bytes(sound)
    load_famus(folder)
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": LOUD}))  # transformers prefers it
    refused("processor_config.json has a 'num_mel_bins' beyond 4096", load_famus, folder)
