"""`from_pretrained` of meta-learners and layer samplers, whose files are read and written by whoever knows how."""

from collections.abc import Callable
from os import PathLike
from typing import Any, ClassVar, Protocol, Self


class MetaNetFiles(Protocol):
    """What reads and writes `meta_net/`; see `famus_hf.hub.meta_net_files`."""

    def load_kind(
        self, kind: Any, repo_or_folder: str | PathLike[str], subfolder: str, revision: str | None, token: str | None
    ) -> Any: ...

    def save_meta_net(self, folder: str | PathLike[str], meta_learner: Any, layer_sampler: Any) -> None: ...


class Pretrained:
    """Something that a run leaves in `meta_net/`.

    Attributes:
        files: Returns what reads and writes it. `famus_hf/__init__.py` hands that in, as it needs more than torch.
    """

    files: ClassVar[Callable[[], MetaNetFiles]]

    @classmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | PathLike[str],
        subfolder: str = "meta_net",
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load what a FaMUS run left on disk or on the Hub; of `MetaLearner` and `LayerSampler` any kind.

        Only safetensors and JSON are read, as by `famus_hf.load_famus`.

        Args:
            repo_or_folder: A local folder, or `user/name` on the Hub.
            subfolder: Where in it `meta_net/config.json` lies; `""` if at its root.
            revision: Branch, tag or commit on the Hub.
            token: For private repositories; default: where huggingface_hub looks.

        Raises:
            LoadError: It is of another kind, or its files are missing, damaged, absurd or lead elsewhere.
            HubError: There is no such folder or repository, or the Hub does not give it.
        """
        return cls.files().load_kind(cls, repo_or_folder, subfolder, revision, token)
