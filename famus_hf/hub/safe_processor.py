"""Reading a folder's image processor, tokenizer or feature extractor, which may be hostile: JSON alone, and no code."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    SequenceFeatureExtractor,
)
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from famus_hf.data.media.modalities import AUDIO, TEXT, Modality
from famus_hf.errors import LoadError, reason_of
from famus_hf.hub.safe_backbone import MAX_NUMBER, check_values
from famus_hf.storage.run_folder import CONFIG, PROCESSOR_FILES
from famus_hf.storage.untrusted import read_json

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
MAX_TOKENIZER_BYTES = 2**26  # a vocabulary of 250 000 takes 17 million
# Of numbers that make tables of a feature extractor: filters are bins × frequencies. Others count samples.
MAX_TABLE_SIDE = 4096
COUNT_SAMPLES = ("n_samples", "nb_max_samples", "sampling_rate", "frequency_max", "max_frequency", "fmax")
MAX_FRAMES = 2**15  # that each recording is made to have, however short: five minutes of them
COUNT_FRAMES = ("max_length", "nb_max_frames")
UNLIMITED = "model_max_length"  # where a tokenizer without a limit has a number of thirty digits


def load_processor(folder: Path, modality: Modality) -> Any:
    """Return what makes a network's inputs, None where there is none. Raise LoadError on what can't be loaded."""
    name = TOKENIZER_CONFIG if modality is TEXT else PROCESSOR_FILES[0]
    if not (folder / name).is_file():
        return None
    load = {TEXT: _load_tokenizer, AUDIO: _load_extractor}.get(modality, _load_image_processor)
    try:
        return load(folder)
    except Exception as error:  # transformers raises anything on the values of a folder
        what = modality.processor_name
        raise LoadError(f"{str(folder)!r} holds no {what} that can be loaded ({reason_of(error)})") from error


def _load_image_processor(folder: Path) -> Any:
    _check_files(folder, _check_numbers)
    return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def _load_extractor(folder: Path) -> Any:
    _check_files(folder, _check_tables)
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(extractor, SequenceFeatureExtractor):
        raise LoadError(f"{PROCESSOR_FILES[0]} is of a {type(extractor).__name__}, which takes no recordings")
    rate = extractor.sampling_rate
    if not (isinstance(rate, int) and rate > 0):
        raise LoadError(f"its sampling_rate is {str(rate)[:80]!r}, and a whole number of Hz is needed")
    return extractor


def _check_files(folder: Path, check: Callable[[str, dict[str, Any]], None]) -> None:
    """Check both files, as transformers prefers what lies within the second."""
    for name in PROCESSOR_FILES:
        if (folder / name).exists():
            check(name, read_json(folder, folder / name))


def _check_numbers(name: str, settings: dict[str, Any]) -> None:
    check_values(name, settings, MAX_NUMBER)


def _check_tables(name: str, settings: dict[str, Any]) -> None:
    """Check the numbers of a feature extractor, whose settings may lie within those of a processor."""
    _check_numbers(name, settings)
    for group in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        frames = {key: value for key, value in group.items() if key in COUNT_FRAMES}
        others = (*COUNT_SAMPLES, *COUNT_FRAMES)
        sides = {key: value for key, value in group.items() if key not in others and not isinstance(value, dict)}
        check_values(name, frames, MAX_FRAMES)
        check_values(name, sides, MAX_TABLE_SIDE)


def _load_tokenizer(folder: Path) -> Any:
    """Load it from `tokenizer.json` alone: other tokenizers have vocabularies in formats of their own."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise LoadError(f"there is no {TOKENIZER}, and vocabularies in other formats are not read")
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise LoadError(f"{TOKENIZER} has {path.stat().st_size} bytes, and at most {MAX_TOKENIZER_BYTES} are read")
    settings = read_json(folder, folder / TOKENIZER_CONFIG)
    check_values(TOKENIZER_CONFIG, {key: value for key, value in settings.items() if key != UNLIMITED}, MAX_NUMBER)
    _check_keys(settings)
    is_whole = (folder / CONFIG).is_file()  # an adapter has none
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False) if is_whole else None
    for name in (settings.get("tokenizer_class"), getattr(config, "tokenizer_class", None)):
        _check_class(name)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise LoadError(f"it is a {type(tokenizer).__name__}, and only those that {TOKENIZER} holds are read")
    return tokenizer


def _check_keys(settings: Mapping[str, Any]) -> None:
    """Raise LoadError on what would run code, or read a file that the settings name."""
    for key in settings:
        if key in ("auto_map", "init_inputs") or key.endswith(("_file", "_object", "_path")):
            raise LoadError(f"{TOKENIZER_CONFIG} has a {key[:80]!r}, and no code or file that it names is read")


def _check_class(name: Any) -> None:
    if name is None:
        return
    known = tokenizer_class_from_name(name) if isinstance(name, str) else None
    if known is None or not issubclass(known, PreTrainedTokenizerFast):
        raise LoadError(f"its tokenizer_class is {str(name)[:80]!r}, which is none that {TOKENIZER} holds")
