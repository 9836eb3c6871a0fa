"""What a classifier takes: images, texts or recordings, and what each is called here and in transformers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Audio, Image
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)


@dataclass(frozen=True)
class Modality:
    """One kind of example, and what goes with it.

    Attributes:
        column: Of a raw data set that holds the examples.
        things: What they are called, several of them.
        task: Of transformers' pipeline, and of the model card.
        classifier: The Auto-class of its networks.
        processor: The Auto-class of what makes their inputs.
        processor_name: What that is called.
        inputs: Names that these networks may have for their main input.
        settings: Of FaMUSTrainingArguments that are about it alone.
    """

    column: str
    things: str
    task: str
    classifier: Any
    processor: Any
    processor_name: str
    inputs: tuple[str, ...]
    settings: tuple[str, ...]


IMAGE = Modality(
    "image",
    "images",
    "image-classification",
    AutoModelForImageClassification,
    AutoImageProcessor,
    "image processor",
    ("pixel_values",),
    ("augmentation", "augmentation_padding_mode", "image_size", "resize_size", "image_mean", "image_std"),
)
TEXT = Modality(
    "text",
    "texts",
    "text-classification",
    AutoModelForSequenceClassification,
    AutoTokenizer,
    "tokenizer",
    ("input_ids",),
    ("max_seq_length",),
)
AUDIO = Modality(
    "audio",
    "recordings",
    "audio-classification",
    AutoModelForAudioClassification,
    AutoFeatureExtractor,
    "feature extractor",
    ("input_values", "input_features"),
    ("max_length_seconds",),
)
MODALITIES = (IMAGE, TEXT, AUDIO)


def modality_of_columns(names: Iterable[str]) -> Modality | None:
    """Return the modality by a raw data set's columns; None where there is none, or already a network's inputs."""
    names = set(names)
    if any(names.intersection(modality.inputs) for modality in MODALITIES):
        return None
    return next((modality for modality in MODALITIES if modality.column in names), None)


def modality_of_source(names: Iterable[str]) -> Modality:
    """Return the modality by the columns of a data set that was read from its source, one of which holds examples."""
    return next(modality for modality in MODALITIES if modality.column in names)


def modality_of_network(network: Any) -> Modality:
    """Return the modality by the main input of a network of transformers; of any other, images."""
    name = getattr(network, "main_input_name", None)
    return next((modality for modality in MODALITIES if name in modality.inputs), IMAGE)


def modality_of_config(config: Any) -> Modality:
    """Return the modality of the classifier that a configuration names, else the first that has one of its type."""
    possible = [modality for modality in MODALITIES if type(config) in modality.classifier._model_mapping]
    architectures = set(getattr(config, "architectures", None) or ())
    named = [modality for modality in possible if architectures & _class_names(modality, config)]
    return (named or possible or [IMAGE])[0]


def _class_names(modality: Modality, config: Any) -> set[str]:
    """Return the names of the modality's networks with such a configuration."""
    networks = modality.classifier._model_mapping[type(config)]
    return {network.__name__ for network in (networks if isinstance(networks, tuple) else (networks,))}


FILES = {"image": Image(), "audio": Audio(decode=False)}  # kind of what is stored in files → feature
