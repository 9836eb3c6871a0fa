"""`from_pretrained` of meta-learners and layer samplers (torch only, until it is called)."""

from os import PathLike
from typing import Self


class PretrainedPart:
    """Something that a run leaves in `meta_net/`."""

    @classmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | PathLike[str],
        subfolder: str = "meta_net",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """What a FaMUS run left on disk or on the Hub; that of `MetaLearner` and `LayerSampler` takes any kind.

        Only safetensors and JSON are read, as by `famus_hf.load_famus`.

        Args:
            repo_or_folder: A local folder, or `user/name` on the Hub.
            subfolder: Where in it `meta_net/config.json` lies; `""` if at its root.
            revision: Branch, tag or commit on the Hub.
            token: For private repositories; default: where huggingface_hub looks.

        Raises:
            ValueError: There is none, it is of another kind, or its files are damaged, absurd or lead elsewhere.
        """
        from famus_hf.hub.meta_net_files import load_kind  # which needs more than torch

        return load_kind(cls, repo_or_folder, subfolder, revision, token)
