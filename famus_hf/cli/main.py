"""The command `famus-hf`, which pip installs: one subcommand for each thing to do.

famus-hf train --dataset_name digits --noise 0.4
famus-hf train --help
"""

import sys
from importlib import import_module

from famus_hf.cli.program import fail, started_as

# Subcommand → module of this package with a function `main(argv, program)`, and what it does.
COMMANDS = {
    "train": ("train", "train on noisy labels, evaluate, and leave a folder that is ready for the Hub"),
    "compare": ("compare", "train several methods on the same wrong labels, and say which one to take"),
    "label-report": ("label_report", "list which labels of a data set are probably wrong, the most suspect first"),
    "review": ("review", "review the suspect labels of a run on a page, by keyboard"),
    "relabel": ("relabel", "write a copy of the data with the labels that were decided on"),
    "plot": ("plot", "draw runs side by side, as PNG and SVG"),
    "report": ("report", "make one HTML page about a run, for people who do not read code"),
    "push-dataset": ("push_dataset", "convert a noisy data set once and push it to the Hub"),
}


def help_text() -> str:
    """Return the commands, a line each."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(["usage: famus-hf COMMAND [flags]", "", *lines, "", "famus-hf COMMAND --help says more of each."])


def main(argv: list[str] | None = None) -> None:
    """Run the subcommand that comes first; without one, print what there is."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return
    if name not in COMMANDS:
        with started_as("famus-hf"):
            fail(f"{name!r} is no command: choose one of {', '.join(COMMANDS)}")
    import_module(f"famus_hf.cli.{COMMANDS[name][0]}").main(flags, f"famus-hf {name}")


if __name__ == "__main__":
    main()
