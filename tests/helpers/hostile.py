"""What a hostile folder is made of: mutated JSON and safetensors headers, pickles that would show if they were run."""

import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MEBIBYTE = 2**20
NUMBERS = [0, -1, 1, 2, 3, 10**9, 10**12, -(10**12), 2**63, 2**64, 10**400, 1e308, -0.5, float("nan"), float("inf")]
WORDS = ["", "type", "mw-net", "mlc", "learned", "all", "block", "hidden_size", "../../x", "\ud800", "\n", "F32", "I64"]

values = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | st.sampled_from(WORDS) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), inner),
    max_leaves=6,
)

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def places(tree, path=()):
    """Paths of all values in a tree of dicts and lists, the root among them."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def mutated(draw, tree):
    """The tree with one to three values replaced, left out, doubled or added to."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(values)
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "leave out", "double", "add"]))
        if action == "replace":
            parent[path[-1]] = draw(values)
        elif action == "leave out":
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.insert(0, copy.deepcopy(parent[path[-1]]) if action == "double" else draw(values))
        else:
            name = draw(st.sampled_from(WORDS) | st.text(max_size=8))
            parent[name] = copy.deepcopy(parent[path[-1]]) if action == "double" else draw(values)
    return tree


@st.composite
def damaged(draw, content):
    """Bytes with a few of them changed, or cut short, or with some more."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        content[draw(st.integers(0, min(len(content), 2000) - 1))] = draw(st.integers(0, 255))
    end = draw(st.none() | st.integers(0, len(content)))
    return bytes(content[:end]) + draw(st.binary(max_size=4))


def as_json(tree):
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def header_of(content):
    """The header of a safetensors file and its tensors' bytes."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, tensors):
    text = as_json(header)
    return len(text).to_bytes(8, "little") + text + tensors


def fuzz(count):
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def refused(words, action, *arguments):
    """That the action raises ValueError with one short sentence that holds these words."""
    with pytest.raises(ValueError, match=words) as caught:
        action(*arguments)
    assert is_a_sentence(str(caught.value)), str(caught.value)


def is_a_sentence(message):
    return 20 < len(message) < 700 and "\n" not in message and not re.search(r"Traceback|\. [A-Z]", message)


def peak_growth(action):
    """MiB by which the process grows at most while the action runs (Linux)."""
    status = Path("/proc/self/status")

    def read(field):
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text()).group(1)) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = read("VmRSS")
    action()
    return read("VmHWM") - before


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)
