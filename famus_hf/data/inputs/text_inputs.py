"""Texts, and pairs of texts, as the tokens that a model takes."""

import copy
import inspect
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from famus_hf.data.inputs.model_inputs import ModelInputs, Ragged
from famus_hf.data.media.images import SHOW_FROM
from famus_hf.data.media.modalities import TEXT
from famus_hf.errors import DataError

if TYPE_CHECKING:
    from famus_hf.training_args import FaMUSTrainingArguments

LONGEST = 512  # tokens of a text where neither the settings nor the tokenizer name a limit
NO_LIMIT = 2**20  # tokenizers without one name a larger number
CHUNK = 1000  # texts that are tokenized at once

logger = logging.get_logger(__name__)


class TextInputs(ModelInputs):
    """A data set with raw texts as `input_ids` and what else the tokenizer makes of them.

    Texts are tokenized once and stay in memory. Those that are longer than the tokenizer's `model_max_length` are cut,
    and their number is said, as is that of empty ones. Batches are padded by the collator, to their own longest text.

    Args:
        dataset: Columns `text`, perhaps `text_pair`, `label` and any of `index`, `clean_label`.
        tokenizer: From transformers.
        name: Of the data set in sentences.

    Raises:
        DataError: All texts are empty.
    """

    modality = TEXT
    words = "word for word"

    def __init__(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, name: str = "the data set"):
        super().__init__(dataset, tokenizer, name)
        self._report_empty()
        arrays: dict[str, list[np.ndarray]] = {}
        lengths: list[int] = []
        chunks = range(0, len(self), CHUNK)
        for start in tqdm(chunks, desc="Tokenizing texts", unit_scale=CHUNK, disable=len(self) < SHOW_FROM):
            tokenized = self._tokenize(self._texts(start, start + CHUNK), lengths)
            for name, rows in tokenized.items():
                arrays.setdefault(name, []).extend(np.asarray(row, dtype=np.int32) for row in rows)
        self._tokens = {name: Ragged(rows) for name, rows in arrays.items()}
        cut = sum(length > tokenizer.model_max_length for length in lengths)
        if cut:
            logger.warning(
                f"{cut} of {len(self)} texts of {self.name} are longer than {tokenizer.model_max_length} tokens and "
                f"are cut (the longest has {max(lengths)}): max_seq_length sets where"
            )

    def contents(self) -> Iterable[Hashable] | None:
        return zip(*(self.raw[name] for name in self.raw.column_names), strict=True)

    def _texts(self, start: int, end: int) -> list[list[str]]:
        """Return the first texts of these examples and, of pairs, the second ones; what is missing counts as empty."""
        rows = self.raw[start:end]
        return [[text or "" for text in rows[name]] for name in self.raw.column_names]

    def _report_empty(self) -> None:
        texts = ((row, text) for name in self.raw.column_names for row, text in enumerate(self.raw[name]))
        empty = {row for row, text in texts if not _has_words(text)}
        if not empty:
            return
        if len(empty) == len(self):
            raise DataError(f"all of {len(self)} texts of {self.name} are empty: check the text column")
        logger.warning(
            f"{len(empty)} of {len(self)} texts of {self.name} are empty ({self.named(sorted(empty))}): nothing can be "
            "learned from them"
        )

    def _tokenize(self, texts: list[list[str]], lengths: list[int]) -> dict[str, list[list[int]]]:
        """Return input name → tokens of each text, cut. Their numbers before they were cut go to `lengths`."""
        limit = self.processor.model_max_length
        inputs = dict(self.processor(*texts, padding=False, truncation=False, verbose=False))
        uncut = [len(tokens) for tokens in inputs["input_ids"]]
        for row, length in enumerate(uncut):
            if length > limit:
                pair = [column[row] for column in texts]
                for name, tokens in self.processor(*pair, truncation=True, max_length=limit).items():
                    inputs[name][row] = tokens
            elif length == 0:  # by a tokenizer that adds no token of its own
                for name, value in self.processor.pad([{"input_ids": []}], padding="max_length", max_length=1).items():
                    if name in inputs:
                        inputs[name][row] = [1] if name == "attention_mask" else value[0]
        lengths += uncut
        return inputs

    def _inputs(self, rows: list[int]) -> list[dict[str, Any]]:
        return [{name: tokens[row].tolist() for name, tokens in self._tokens.items()} for row in rows]


def _has_words(text: str | None) -> bool:
    """Return whether there is anything in it."""
    return bool(text and text.strip())


def adapted_tokenizer(tokenizer: Any, args: "FaMUSTrainingArguments", model: Any) -> Any:
    """Return a tokenizer that cuts texts at its `model_max_length` and can pad; tell the network its padding token.

    Raises:
        DataError: It has no words or no token to pad with, or it or `max_seq_length` does not go with the network.
    """
    tokenizer, config = copy.deepcopy(tokenizer), getattr(model, "config", None)
    _check_vocabulary(tokenizer, model)
    if tokenizer.pad_token is None:
        token = tokenizer.eos_token or tokenizer.unk_token
        if token is None:
            raise DataError("the tokenizer has no token to pad with: set tokenizer.pad_token")
        tokenizer.pad_token = token
    if config is not None:
        config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = _limit(tokenizer, args, config)
    parameters = inspect.signature(getattr(model, "forward", None) or _no_network).parameters
    if "input_ids" in parameters:  # else it does not say by name what it takes
        # Also in init_kwargs, which are what is saved: the attribute alone would be lost.
        names = [name for name in tokenizer.model_input_names if name in parameters]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return tokenizer


def _no_network(**inputs: Any) -> None:
    """Stand in for a network that is not there."""


def _check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Raise DataError on a tokenizer without one, as transformers makes where files lack, or of another network."""
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise DataError("the tokenizer knows no words: its files are not there, give those of the model")
    try:
        size = model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):  # of networks that are not transformers' or have none
        return
    if len(tokenizer) > size:
        raise DataError(f"the tokenizer has {len(tokenizer)} tokens and the network {size}: give that of the network")


def _limit(tokenizer: Any, args: "FaMUSTrainingArguments", config: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    positions = positions if isinstance(positions, int) and positions > 0 else NO_LIMIT
    if args.max_seq_length is None:
        named = tokenizer.model_max_length
        return min(positions, named if named < NO_LIMIT else LONGEST)
    if args.max_seq_length > positions:
        raise DataError(
            f"max_seq_length={args.max_seq_length} exceeds the {positions} tokens that the network has places for: "
            "lower it"
        )
    return args.max_seq_length
