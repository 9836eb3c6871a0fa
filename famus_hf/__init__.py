"""FaMUS: training classifiers on noisy labels with Hugging Face transformers.

The public names are those of `__init__.pyi`; each is imported when it is first asked for, so that `famus_hf.core`,
which needs torch alone, and the command line's help come without transformers and datasets.
"""

from importlib import import_module
from types import ModuleType

import lazy_loader
from wrapt import when_imported

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


@when_imported("transformers.models.auto.modeling_auto")
def _register_backbones(auto: ModuleType) -> None:
    """Have transformers' Auto classes and pipelines know our backbones wherever famus_hf was imported."""
    import_module("famus_hf.models")


@when_imported("famus_hf.core.pretrained")
def _hand_in_files(pretrained: ModuleType) -> None:
    """Give meta-learners and layer samplers what reads and writes them, which `famus_hf.core` must not import."""
    pretrained.Pretrained.files = staticmethod(lambda: import_module("famus_hf.hub.meta_net_files"))
