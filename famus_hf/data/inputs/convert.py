"""From a raw data set of any modality to model inputs, and what makes them where nothing was given."""

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from datasets import Dataset, IterableDataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast, SequenceFeatureExtractor

from famus_hf.data.inputs.audio_inputs import RecordingInputs, adapted_extractor
from famus_hf.data.inputs.image_inputs import ImageInputs
from famus_hf.data.inputs.image_processors import adapted_processor, default_image_processor
from famus_hf.data.inputs.model_inputs import ModelInputs
from famus_hf.data.inputs.streamed_inputs import StreamedInputs
from famus_hf.data.inputs.text_inputs import TextInputs, adapted_tokenizer
from famus_hf.data.media.modalities import AUDIO, IMAGE, TEXT, Modality, modality_of_columns
from famus_hf.errors import DataError, reason_of

if TYPE_CHECKING:
    from famus_hf.training_args import FaMUSTrainingArguments

INPUTS: dict[Modality, type[ModelInputs]] = {IMAGE: ImageInputs, TEXT: TextInputs, AUDIO: RecordingInputs}
_in_use: WeakValueDictionary[tuple[str, str], ModelInputs] = WeakValueDictionary()


def raw_modality(dataset: Any) -> Modality | None:
    """Return the modality of a `datasets.Dataset` (or stream) that nothing has been done to yet; None of all others."""
    if isinstance(dataset, IterableDataset):
        return modality_of_columns(dataset.features or {})
    if isinstance(dataset, Dataset) and dataset.format["type"] is None:
        return modality_of_columns(dataset.column_names)
    return None


def as_model_inputs(dataset: Any, processor: Any, name: str = "the data set", shuffle_seed: int | None = None) -> Any:
    """Return `ModelInputs` of a raw data set, and anything else as it is.

    The same data set under the same settings is processed once, for as long as somebody holds the result.

    Args:
        dataset: Of whatever form, or a dictionary of them.
        processor: See `processor_for`.
        name: What sentences call the data set, as in "the training set".
        shuffle_seed: For streams, which no sampler shuffles.
    """
    if isinstance(dataset, dict):
        return {key: as_model_inputs(split, processor, f"{name} {key!r}") for key, split in dataset.items()}
    modality = raw_modality(dataset)
    if modality is None or processor is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        if modality is not IMAGE:
            raise DataError(f"{modality.things} are not read from a stream: load the data set without streaming")
        return StreamedInputs(dataset, processor, shuffle_seed, name)
    settings = _settings_of(processor)
    if settings is None:
        return INPUTS[modality](dataset, processor, name)  # a callable of unknown settings
    key = (dataset._fingerprint, settings)
    inputs = _in_use.get(key)
    if inputs is None:
        inputs = _in_use[key] = INPUTS[modality](dataset, processor, name)
    return inputs


def _settings_of(processor: Any) -> str | None:
    """Return all that the inputs depend on beside the data, of processors that can tell it."""
    if isinstance(processor, BaseImageProcessor | SequenceFeatureExtractor):
        return processor.to_json_string()
    if isinstance(processor, PreTrainedTokenizerFast):
        backend = processor.backend_tokenizer
        backend.no_truncation()  # which the call before has left behind, and each call sets anew
        return f"{processor.model_max_length} {processor.model_input_names} {backend.to_str()}"
    return None


def processor_for(processor: Any, model: Any, dataset: Any, args: "FaMUSTrainingArguments") -> Any:
    """Return the one given, else the model's own or, of images, one made from the data; adapted to the settings.

    Raises:
        DataError: There is none, or it does not go with the settings.
    """
    modality = raw_modality(dataset)
    if processor is None and modality is not None:
        make = default_image_processor if modality is IMAGE else _processor_of
        processor = make(model, dataset)
    if isinstance(processor, PreTrainedTokenizerBase):
        return adapted_tokenizer(processor, args, model)
    if isinstance(processor, SequenceFeatureExtractor):
        return adapted_extractor(processor, args)
    if modality not in (None, IMAGE):
        raise DataError(
            f"processing_class is a {type(processor).__name__}, and {modality.things} need a {modality.processor_name}"
        )
    return adapted_processor(processor, args, model)


def _processor_of(model: Any, dataset: Any) -> Any:
    """Load the tokenizer or feature extractor that came with the model."""
    modality = raw_modality(dataset)
    assert modality is not None
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    advice = f"give its {modality.processor_name} as processing_class"
    if not source:
        raise DataError(f"the model was not loaded from anywhere that could have a {modality.processor_name}: {advice}")
    try:
        return modality.processor.from_pretrained(source)
    except Exception as error:  # transformers raises anything on what a folder lacks
        raise DataError(f"{source!r} has no {modality.processor_name} ({reason_of(error)}): {advice}") from error


def check_settings(modality: Modality, args: "FaMUSTrainingArguments") -> None:
    """Raise DataError on settings that are about another modality."""
    for other in INPUTS:
        for name in other.settings if other is not modality else ():
            value = getattr(args, name)
            if value != type(args).__dataclass_fields__[name].default:
                raise DataError(
                    f"{name}={value} is about {other.things}, and these are {modality.things}: leave it out"
                )
