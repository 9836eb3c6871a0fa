"""The README's Python example runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    command = [sys.executable, "-c", example + "\nprint(type(meta_learner).__name__, type(layer_sampler).__name__)"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("MWNet LearnedSampler")
    assert (tmp_path / "outputs" / "digits" / "meta_net" / "config.json").is_file()


def test_every_function_that_the_readme_names_exists():
    import importlib

    names = re.findall(r"`((?:meta_learners|stages|derivatives|layers|layer_sampler)\.(?!py)\w+)`", README.read_text())
    assert len(names) >= 10
    for name in names:
        module, attribute = name.split(".")
        assert hasattr(importlib.import_module(f"famus_hf.{module}"), attribute), name
