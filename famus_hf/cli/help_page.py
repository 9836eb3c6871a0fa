"""What the help pages of all commands have in common."""

import argparse


class OneLinePerFlag(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each flag by one of its spellings, and its default where there is one and the help does not say it."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, 'VALUE')}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_said = (
            action.nargs == 0
            or action.default in (None, argparse.SUPPRESS)
            or "default:" in (action.help or "").lower()
        )
        return action.help if is_said else super()._get_help_string(action)


def command_parser(program: str, about: str) -> argparse.ArgumentParser:
    """Return the parser of a command; its help has the first paragraph of `about` at the top, the others at the end."""
    first, _, others = about.partition("\n\n")
    return argparse.ArgumentParser(program, description=first, epilog=others, formatter_class=OneLinePerFlag)
