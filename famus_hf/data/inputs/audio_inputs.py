"""Recordings as the inputs that a model takes: decoded, mixed down to one channel, resampled, cut, checked."""

import copy
import io
import struct
import warnings
from collections.abc import Hashable, Iterable
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Audio, Dataset
from scipy.io import wavfile
from scipy.signal import resample_poly
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, SequenceFeatureExtractor
from transformers.utils import logging

from famus_hf.data.inputs import model_inputs
from famus_hf.data.media.examples import refuse_broken
from famus_hf.data.media.images import SHOW_FROM
from famus_hf.data.media.modalities import AUDIO
from famus_hf.errors import DataError, reason_of

if TYPE_CHECKING:
    from famus_hf.training_args import FaMUSTrainingArguments

LONGEST = 20.0  # seconds of a recording where the settings name no limit, as in transformers' own example
MAX_RATE = 768_000  # Hz that are believed: the filter of a resampling is as long as the rate is high
LONGEST_MASK = 2**18  # samples of a stretch that SpecAugment may mask
WAV = (b"RIFF", b"RIFX", b"RF64")  # how such a file begins
UNREADABLE = (OSError, ValueError, EOFError, struct.error, RuntimeError, TypeError)  # soundfile's is a RuntimeError

logger = logging.get_logger(__name__)


class RecordingInputs(model_inputs.ModelInputs):
    """A data set with raw recordings as what the feature extractor makes of them.

    Each is decoded, mixed down to one channel and resampled to the extractor's rate; its first `max_length_seconds` are
    taken. What comes of it stays in memory where all fit in `MEMORY_LIMIT`. Batches are padded by the collator.

    Args:
        dataset: Columns `audio`, `label` and any of `index`, `clean_label`.
        extractor: From transformers.
        name: Of the data set in sentences.

    Raises:
        DataError: Some recordings can't be read, are empty or hold no numbers; says how many and which.
    """

    modality = AUDIO
    words = "sample for sample"

    def __init__(self, dataset: Dataset, extractor: SequenceFeatureExtractor, name: str = "the data set"):
        super().__init__(dataset, extractor, name)
        feature = dataset.features["audio"]
        if not isinstance(feature, Audio):
            raise DataError(f"column 'audio' holds {feature}, which is no recording: cast it to datasets.Audio")
        self.raw = self.raw.cast_column("audio", Audio(decode=False))  # datasets 5.2 would decode by torchcodec
        self._kept: list[dict[str, Any]] | None = []
        self.lengths: list[int] = []  # samples of each recording, at the extractor's rate and cut
        self._check_and_keep()

    def contents(self) -> Iterable[Hashable] | None:
        if self._kept is None:
            return None
        return (b"".join(np.asarray(value).tobytes() for value in inputs.values()) for inputs in self._kept)

    def waves(self) -> list[np.ndarray]:
        """Return the samples of each recording, at the extractor's rate and cut."""
        return [self._wave(row)[0] for row in range(len(self))]

    def _check_and_keep(self) -> None:
        unreadable: list[int] = []
        cut = size = 0
        reason = ""
        for row in tqdm(range(len(self)), desc="Reading recordings", disable=len(self) < SHOW_FROM):
            try:
                wave, is_cut = self._wave(row)
                inputs = {} if self._kept is None else self._extract(wave)
            except UNREADABLE as error:
                unreadable.append(row)
                reason = reason or reason_of(error)
                continue
            cut += is_cut
            self.lengths.append(len(wave))
            if self._kept is not None:
                size += sum(np.asarray(value).nbytes for value in inputs.values())
                self._kept.append(inputs)
                if size > model_inputs.MEMORY_LIMIT:
                    self._kept = None
        if len(unreadable) == len(self) > 0:
            raise DataError(
                f"none of {len(self)} recordings of {self.name} can be read ({reason}): check the audio column"
            )
        refuse_broken(self.raw, AUDIO, unreadable, self.name, self.records.get("index"))
        if cut:
            seconds = f"{self.processor.max_length_seconds:g} seconds"
            logger.warning(
                f"{cut} of {len(self)} recordings of {self.name} are longer than {seconds} and are cut: "
                "max_length_seconds sets where"
            )

    def _wave(self, row: int) -> tuple[np.ndarray, bool]:
        """Return the samples at the extractor's rate, shape (T,), float32, and whether there were more."""
        samples, rate = decode(content_of(self.raw[row]["audio"]))
        limit = round(self.processor.max_length_seconds * rate)
        return resample(samples[:limit], rate, self.processor.sampling_rate), len(samples) > limit

    def _extract(self, wave: np.ndarray) -> dict[str, Any]:
        batch = self.processor(wave, sampling_rate=self.processor.sampling_rate)  # of one recording
        return {name: np.asarray(value[0]) for name, value in batch.items()}

    def _inputs(self, rows: list[int]) -> list[dict[str, Any]]:
        if self._kept is not None:
            return [dict(self._kept[row]) for row in rows]
        return [self._extract(self._wave(row)[0]) for row in rows]


class RecordingCollator(DataCollatorWithPadding):
    """A collator that pads a batch to its longest recording, and to what SpecAugment needs where even that is shorter.

    Args:
        extractor: A feature extractor of transformers.
        network: That the batches are for. Default: any.
    """

    def __init__(self, extractor: Any, network: Any = None):
        super().__init__(extractor, padding="max_length")
        self.shortest = fewest_samples(network)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        name = self.tokenizer.model_input_names[0]
        self.max_length = max(self.shortest, *(len(example[name]) for example in features))
        return super().__call__(features)


def fewest_samples(network: Any) -> int:
    """Return the fewest samples of a recording that SpecAugment can mask a stretch of; 0 for a network without it."""
    config: Any = getattr(network, "config", None)
    is_masked = getattr(config, "apply_spec_augment", False) and getattr(config, "mask_time_prob", 0) > 0
    count_frames = getattr(network, "_get_feat_extract_output_lengths", None)
    if not is_masked or count_frames is None:
        return 0
    enough = (count_frames(torch.arange(LONGEST_MASK)) >= config.mask_time_length).nonzero()
    return int(enough[0]) if len(enough) else 0


def check_long_enough(datasets: Iterable[Any], network: Any) -> None:
    """Raise DataError on recordings of which a network that reads waves by convolutions would see nothing."""
    count_frames = getattr(network, "_get_feat_extract_output_lengths", None)
    for dataset in datasets:
        if count_frames is not None and isinstance(dataset, RecordingInputs):
            short = (count_frames(torch.tensor(dataset.lengths)) < 1).nonzero().flatten().tolist()
            if short:
                raise DataError(
                    f"{len(short)} of {len(dataset)} recordings of {dataset.name} are too short for the network "
                    f"({dataset.named(short)}; the shortest has {min(dataset.lengths)} samples at "
                    f"{dataset.processor.sampling_rate} Hz): leave them out"
                )


def content_of(file: dict[str, Any] | None) -> bytes:
    """Return the bytes of a recording as a data set stores it. Raise one of UNREADABLE where there is none."""
    if file is None:
        raise DataError("there is none")
    return Path(file["path"]).read_bytes() if file["bytes"] is None else file["bytes"]


def decode(content: bytes) -> tuple[np.ndarray, int]:
    """Return a file's samples, mixed down to one channel, shape (T,), float32 in [−1, 1], and their rate in Hz.

    WAV is read by scipy; every other format by soundfile, where that is installed.

    Raises:
        Any of UNREADABLE: It can't be read, is empty, or holds what is no number.
    """
    if content[:4] in WAV:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no samples
            rate, samples = wavfile.read(io.BytesIO(content))
        if samples.dtype == np.uint8:
            samples = (samples.astype(np.float32) - 128) / 128
        elif samples.dtype.kind == "i":  # of 24 bits too: scipy shifts them to the top of an int32
            samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    else:
        samples, rate = _soundfile().read(io.BytesIO(content), dtype="float32")
    samples = np.asarray(samples, dtype=np.float32)
    samples = samples.mean(1) if samples.ndim == 2 else samples
    if len(samples) == 0 or not np.isfinite(samples).all():
        raise DataError("it is empty, or holds what is no number")
    if not 0 < rate <= MAX_RATE:
        raise DataError(f"it claims {rate} samples a second")
    return samples, int(rate)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library is missing
        raise DataError("formats other than WAV need pip install soundfile") from error
    return soundfile


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Resample (T,) at `rate` Hz to (T·wanted/rate,) at `wanted` Hz, by a polyphase filter."""
    if rate == wanted:
        return samples
    common = gcd(rate, wanted)
    return resample_poly(samples, wanted // common, rate // common).astype(np.float32)


def adapted_extractor(extractor: Any, args: "FaMUSTrainingArguments") -> Any:
    """Return a feature extractor that knows, and saves, after how many seconds recordings are cut.

    Raises:
        DataError: Its `max_length_seconds` is no number of seconds.
    """
    extractor = copy.deepcopy(extractor)
    seconds = args.max_length_seconds or getattr(extractor, "max_length_seconds", LONGEST)
    if not (isinstance(seconds, int | float) and 0 < seconds < 1e6):
        raise DataError(f"the feature extractor's max_length_seconds is {seconds!r}: give a number of seconds")
    extractor.max_length_seconds = float(seconds)
    return extractor
