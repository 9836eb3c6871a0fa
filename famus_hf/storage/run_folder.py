"""The names of all files that a run leaves in its folder and on the Hub, each written down once."""

from fnmatch import fnmatch

# ---- The model ----

CONFIG = "config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_CONFIG = "base_config.json"  # of the network under an adapter: a config.json beside it would mean a whole network
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer*.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json",
    "vocab.*", "merges.txt", "added_tokens.json",
)  # fmt: skip
NETWORKS_APART = ("model_a", "model_b")  # folders of two networks; as the ensemble's modules are called

# ---- Its meta-net ----

META_NET = "meta_net"
META_LEARNER_WEIGHTS, LAYER_SAMPLER_WEIGHTS = "model.safetensors", "layer_sampler.safetensors"

# ---- Records of a training ----

CARD = "README.md"
NOISE_FILE = "noise.parquet"
REPORT_FILE = "label_report.parquet"
DECISIONS = "decisions.csv"  # of a reviewer on the labels; no record of the training, which outlives the next one
RESULTS = "all_results.json"
FIGURES = "figures"
DIAGNOSTICS = "diagnostics"
TRAINER_STATE = "trainer_state.json"  # as transformers calls it

# ---- Checkpoints ----

MANIFEST = "checkpoint_files.json"
META_STATE = "meta_state.pt"
BELIEFS = "beliefs.safetensors"  # what the network believed of each example before it learned from it
RAW_WEIGHTS = "raw_weights.safetensors"  # beside averaged ones, the weights that a training goes on from
EARLIER_WEIGHTS = "earlier_weights.safetensors"  # after the last epoch, which a meta-learner may go back to
TRAINED_ON = "trained_on.json"  # which data, and by which settings
LAST_CHECKPOINT = "last-checkpoint"  # on the Hub, as transformers calls it
UNFINISHED = ".unfinished"  # a folder within the one that is written to; nothing in it is ever read

# ---- What belongs together ----

# Records that say something of one training, and would be taken for the next one's.
RECORDS = (NOISE_FILE, REPORT_FILE, f"{FIGURES}/*.png", RESULTS, "train_results.json", "eval_results.json")
# What a run writes of a network and its meta-net.
OF_A_NETWORK = (CONFIG, *PROCESSOR_FILES, *WEIGHTS, f"{META_NET}/*.json", f"{META_NET}/*.safetensors")
OF_NETWORKS_APART = tuple(f"{network}/{name}" for network in NETWORKS_APART for name in OF_A_NETWORK)
# What a run writes; a push uploads these, and the files of a backbone's code, and nothing else.
OF_A_RUN = (
    *OF_A_NETWORK, *TOKENIZER_FILES, GENERATION_CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_CONFIG, CARD, *RECORDS,
)  # fmt: skip
# Those of an earlier model that would be taken for the new one's.
MODEL_FILES = (
    CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_CONFIG, PROCESSOR_FILES[0], *WEIGHTS, META_NET, *TOKENIZER_FILES,
)  # fmt: skip
LOADED_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def is_among(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a file's name fits a pattern, folder by folder."""
    return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in patterns)
