"""Clean processes that start in a moment: children of one that has imported what takes most of a start.

    done = clean_process.run([sys.executable, "-c", code], env={**os.environ, **hub.environment(home)}, cwd=folder)

`run` takes what subprocess.run takes, of a command that is Python with `-c` or with a script. The process that is
forked has imported neither famus_hf nor anything that reads HF_HOME or HF_ENDPOINT at import, transformers and datasets
among that: the child imports them itself, under its own variables, and then ends as every process does.
"""

import functools
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path

PRELOADED = """
import PIL.Image, jinja2, pandas, pyarrow.parquet, regex, requests, safetensors.torch, scipy.optimize, scipy.stats
import sklearn.datasets, sklearn.metrics, sklearn.mixture, tokenizers, torch, torch._dynamo
import torch.distributed.checkpoint, torch.distributed.fsdp, torch.distributed.tensor, yaml
"""


def run(command, *, env=None, cwd=None, timeout=300, capture_output=True, text=True, max_file_size=None):
    """The completed process; one that takes too long is killed by SIGALRM. Files can't grow beyond `max_file_size`."""
    python, *arguments = command
    assert python == sys.executable and capture_output and text
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"{folder}/stdout", f"{folder}/stderr"]
        job = {"arguments": arguments, "environment": dict(os.environ if env is None else env),
               "folder": str(Path(cwd or ".").resolve()), "outputs": outputs, "timeout": timeout,
               "max_file_size": max_file_size}  # fmt: skip
        parent = _parent()
        parent.stdin.write(json.dumps(job) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        return subprocess.CompletedProcess(command, code, *(Path(output).read_text() for output in outputs))


def run_python(code, environment):
    """What it prints."""
    result = run([sys.executable, "-c", code], env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@functools.cache
def _parent():
    """The process that is forked, which ends with this one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


# ---- In the process that is forked ----


def next_child():
    """Returns the job in the child that does it, and None in the parent once no more come."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            return job
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def do(job):
    """As `python -c CODE …` and `python SCRIPT …` do, standard streams and variables included."""
    signal.alarm(job["timeout"])
    for number, path in enumerate([os.devnull, *job["outputs"]]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    if job["max_file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["max_file_size"],) * 2)
    first, *rest = job["arguments"]
    if first != "-c":
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")
        return
    sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(rest[0], "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    exec(PRELOADED)
    assert not {"famus_hf", "huggingface_hub", "transformers", "datasets"} & set(sys.modules)
    gc.freeze()  # a child that collected, as it does at its end, would copy nearly all memory first
    job = next_child()
    if job is not None:
        do(job)
