"""README.md and docs/ are true: their code runs, and what they name is there."""

import ast
import importlib
import io
import os
import pkgutil
import re
import runpy
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import flag_table
import pytest
from transformers import TrainingArguments

from famus_hf.cli.arguments import CHANGED, TOPICS
from famus_hf.cli.main import COMMANDS
from famus_hf.cli.main import main as famus_hf_main
from tests.helpers import clean_process
from tests.helpers.loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = sorted(folder.name for folder in (ROOT / "famus_hf").iterdir() if (folder / "__init__.py").is_file())
OTHERS_FLAGS = {"--fsdp_transformer_layer_cls_to_wrap"}  # accelerate launch
READ_FIRST = {"--help", "--config", "--recipe"}  # before the dataclasses are filled

PROOFS = {  # what must hold after the blocks of a page
    "README.md": """
        assert [type(meta_learner).__name__, type(layer_sampler).__name__] == ["PosteriorTargets", "AllLayers"]
        assert __import__("os").path.isfile("outputs/digits/meta_net/config.json")""",
    "docs/data.md": """
        assert list(data) == ["train", "meta", "test"]
        assert data["train"].column_names == ["image", "index", "clean_label", "label"]""",
    "docs/method.md": """
        assert set(gradient) == {name for name, _ in MWNet().named_parameters()}
        assert all(value.abs().max() > 0 for value in gradient.values())""",
    "docs/meta_learners.md": """
        assert [type(meta_learner).__name__, type(layer_sampler).__name__] == ["ClassWeights", "LearnedSampler"]
        assert meta_learner.scores.abs().max() > 0
        assert torch.equal(meta_learner.scores, trainer.meta_learner.scores)""",
    "docs/two_networks.md": """
        assert 0 <= trainer.noise_rate < 1
        kinds = [type(part).__name__ for part in (ensemble, network, meta_learner)]
        assert kinds == ["TwoNetworksForImageClassification", "WideResNetForImageClassification", "MWNet"]""",
    "docs/label_report.md": """
        found = report["clean_probability"][:]
        assert len(report) == len(data["train"]) and (None in found) == bool(report.info.description)
        assert None in found or (found[0] < 0.5 and found == sorted(found))""",
}


@dataclass
class Block:
    """Code between two fences; why it is not run stands in a comment of the page's source, before it."""

    language: str
    code: str
    reason: str


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language=None):
    found = re.findall(r"^(?:<!-- not run: (.*?) -->\n)?```(\w+)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    every = [Block(kind, code, reason) for reason, kind, code in found]
    return [block for block in every if language in (None, block.language)]


def prose(page):
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def name_of(page):
    return str(page.relative_to(ROOT))


# ---- Python ----


RUN = [page for page in PAGES if any(not block.reason for block in blocks(page, "python"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_python_of_a_page_runs_as_it_stands(page, tmp_path):
    code = "\n".join(block.code for block in blocks(page, "python") if not block.reason)
    proof = "\n".join(line.strip() for line in PROOFS.get(name_of(page), "").splitlines())
    done = clean_process.run([sys.executable, "-c", f"{code}\n{proof}"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_python_that_is_not_run_compiles_and_imports_what_there_is():
    found = [block for page in PAGES for block in blocks(page, "python") if block.reason]
    assert found
    for node in (node for block in found for node in ast.walk(ast.parse(block.code))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("famus_hf"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_a_meta_learner_of_your_own_takes_a_screen():
    *_, block = blocks(ROOT / "docs" / "meta_learners.md", "python")
    assert len([line for line in block.code.splitlines() if line]) <= 35


def test_the_way_to_the_hub_and_back_works_as_it_is_written(tmp_path):
    """Train and push, then a process without this library, then one with it, against a Hub of our own."""
    page = ROOT / "docs" / "hub.md"
    login, command = blocks(page, "bash")[0].code.splitlines()
    assert login.startswith("hf auth login")
    repository = re.search(r"--hub_model_id (\S+)", command)[1]
    without, with_famus = (block.code for block in blocks(page, "python"))
    without = "import sys\nsys.modules['famus_hf'] = None\n" + without
    without += "\nfrom PIL import Image\nprint(len(classify(Image.new('L', (8, 8)))))"
    with_famus += "\nimport torch\nassert torch.equal(judge.output.weight, meta_learner.output.weight)"
    with_famus += "\nprint(type(model).__name__, type(layer_sampler).__name__, processor.size.height)"
    script = shlex.split(command.replace("accelerate launch", ""))
    train = [sys.executable, str(ROOT / script[0]), *script[1:], "--num_train_epochs", "1", "--use_cpu"]
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}

        def output_of(command):
            done = clean_process.run(command, cwd=tmp_path, env=environment)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout.strip().splitlines()[-1]

        output_of(train)
        assert {"label_report.parquet", "figures/suspect_labels.png", "README.md"} <= set(hub.files[repository])
        assert output_of([sys.executable, "-c", without]) == "5"
        assert output_of([sys.executable, "-c", with_famus]) == "WideResNetForImageClassification AllLayers 8"


# ---- Names ----


def anchors(page):
    """What a page's headings are linked by."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "model_cards").glob("*/README.md"))], ids=name_of)
def test_every_link_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not link.startswith("https://")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_both_indexes():
    pages = {page.name for page in PAGES[1:]} - {"README.md"}
    assert pages == set(re.findall(r"\]\(docs/(\w+\.md)\)", text_of(README)))
    assert pages == set(re.findall(r"^\| \[\w+\.md\]\((\w+\.md)\)", text_of(ROOT / "docs" / "README.md"), re.MULTILINE))


@every_page
def test_every_file_that_a_page_names_exists(page):
    top = "famus_hf|scripts|tests|docs|model_cards"
    paths = re.findall(rf"(?<![\w/.-])(?:{top})/[\w./-]*\w", text_of(page))
    assert not [path for path in paths if not (ROOT / path).exists()]
    ours = {path.name for folder in top.split("|") for path in (ROOT / folder).rglob("*.*")}
    assert set(re.findall(r"`(\w+\.(?:py|sh))`", text_of(page))) <= ours


def test_the_tree_is_the_package():
    (tree,) = blocks(README, "text")
    assert sorted(re.findall(r"^  (\w+)/", tree.code, re.MULTILINE)) == ROOMS
    table = text_of(ROOT / "docs" / "contributing.md")
    assert sorted(re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)) == ROOMS


def test_every_function_that_a_page_names_exists():
    names = {
        name for page in PAGES for name in re.findall(rf"`((?:{'|'.join(ROOMS)})(?:\.(?!py|md)\w+)+)`", text_of(page))
    }
    assert len(names) >= 10
    for name in names:
        pkgutil.resolve_name(f"famus_hf.{name}")


def test_every_test_that_a_page_names_exists():
    names = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", text_of(page))}
    sources = "".join(text_of(path) for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(names) >= 30
    assert names <= set(re.findall(r"def (test_\w+)", sources))


# ---- Flags ----


RUN = "famus-hf train"
HANDING_ON = ("quickstart.sh", "release.py", "famus-hf compare")  # which give other flags to it
SCRIPTS = ("release.py", "benchmark.py", "reproduce.py")
LAUNCHERS = {path.name for path in (ROOT / "scripts").glob("*.py")} - {*SCRIPTS, "flag_table.py"}


def known_flags(name):
    """The flags that a script, or `famus-hf` with a command, lists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, "--help"])
        patch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
        patch.setattr(sys, "stdout", written := io.StringIO())
        with pytest.raises(SystemExit):
            if name.startswith("famus-hf "):
                famus_hf_main([name.removeprefix("famus-hf "), "--help"])
            else:
                runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    options = re.findall(r"^  -.*", written.getvalue(), re.MULTILINE)
    return {flag for option in options for flag in re.findall(r"--[a-z]\w*(?![\w-])", option)}


@pytest.fixture(scope="module")
def flags_of_scripts():
    known = {name: known_flags(name) for name in (*SCRIPTS, *LAUNCHERS, *(f"famus-hf {name}" for name in COMMANDS))}
    return known | {name: known[RUN] | known.get(name, set()) for name in HANDING_ON}


def commands(page):
    """Script or command, and flags, of each that is ours in a page's shell blocks."""
    for block in blocks(page, "bash"):
        for line in block.code.replace("\\\n", " ").splitlines():
            command = re.search(r"scripts/([\w/]+\.(?:py|sh))(.*)|(famus-hf [\w-]+)(.*)", line.split(" #")[0])
            if command:
                yield command[1] or command[3], set(re.findall(r"--[a-z]\w*", command[2] or command[4] or ""))


@every_page
def test_every_flag_that_a_page_names_exists(page, flags_of_scripts):
    for script, flags in commands(page):
        assert not flags or flags <= flags_of_scripts[script] | READ_FIRST, script
    spans = re.findall(r"`([^`]+)`", prose(page))
    flags = {flag for span in spans for flag in re.findall(r"--[a-z]\w*", span)}
    assert flags <= set.union(*flags_of_scripts.values()) | OTHERS_FLAGS | READ_FIRST


def test_the_table_of_flags_is_fresh():
    page = text_of(flag_table.PAGE)
    assert flag_table.rewritten(page) == page, "run python scripts/flag_table.py"


def test_the_table_has_each_flag_of_ours_once(flags_of_scripts):
    listed = [name for topic, names in TOPICS.items() if topic != CHANGED for name in names]
    theirs = {setting.name for setting in fields(TrainingArguments)}
    known = {flag.removeprefix("--") for flag in flags_of_scripts["run_famus.py"] - READ_FIRST}
    negated = {name for name in known if name.startswith("no_") and name.removeprefix("no_") in known}
    assert sorted(listed) == sorted(known - theirs - negated)


# ---- Size ----


def test_the_readme_is_one_screen():
    assert len(text_of(README).splitlines()) <= 120
    assert len(README.read_bytes()) <= 7000
