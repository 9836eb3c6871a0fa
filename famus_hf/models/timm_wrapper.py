"""Networks of timm, which transformers wraps: whether they can run here, and what of their configurations is refused.

timm takes more from a configuration than a network's shape: a name with a prefix (`hf-hub:`, `local-dir:`) leads to
another repository or folder, and arguments may name files to read.
"""

import re
from collections.abc import Mapping
from typing import Any

from famus_hf.errors import LoadError, first_few, reason_of

TIMM_WRAPPER = "timm_wrapper"  # as model_type
ARCHITECTURE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # a name in timm's own list, perhaps with a tag
# What `model_args` may say: sizes, rates and pooling of a network.
MODEL_ARGS = (
    "attn_drop_rate", "class_token", "depth", "depths", "dims", "drop_path_rate", "drop_rate", "dynamic_img_size",
    "embed_dim", "global_pool", "img_size", "in_chans", "init_values", "mlp_ratio", "num_heads", "patch_size",
    "proj_drop_rate", "qkv_bias", "reg_tokens", "window_size",
)  # fmt: skip
WORD = re.compile(r"[a-z_0-9]{0,40}")


def check_timm(what: str) -> None:
    """Raises ValueError, with the reason, where timm can't be imported: torchvision, which it needs, is often broken.

    Args:
        what: Is a network of timm, in the sentence.
    """
    try:
        import timm  # noqa: F401
        import torchvision  # noqa: F401
    except Exception as error:  # torchvision beside a torch of another build raises RuntimeError
        raise LoadError(
            f"{what} is a network of timm: install timm, and torchvision of the same build as torch, or choose another "
            f"network; importing them fails here ({reason_of(error)})"
        ) from error


def check_timm_config(config: Mapping[str, Any]) -> None:
    """Raises ValueError where timm would look for another repository or file, or might read one."""
    name, arguments = config.get("architecture"), config.get("model_args")
    if not isinstance(name, str) or not ARCHITECTURE.fullmatch(name):
        raise LoadError(f"its architecture is {str(name)[:80]!r}: only names of timm's own list are taken")
    if arguments is None:
        return
    if not isinstance(arguments, Mapping):
        raise LoadError(f"its model_args are a {type(arguments).__name__} and no object")
    unknown = [str(key)[:80] for key in arguments if key not in MODEL_ARGS]
    if unknown:
        raise LoadError(f"its model_args hold {first_few(unknown)}: only {', '.join(MODEL_ARGS)} are taken")
    for key, value in arguments.items():
        if not all(_is_plain(item) for item in (value if isinstance(value, list) else [value])):
            raise LoadError(f"its model_args have a {key} that is no number, word or list of them")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float)) or (isinstance(value, str) and bool(WORD.fullmatch(value)))
