"""How a command of the command line names itself, and how it ends on what users can cause: in one sentence."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn

# What users can cause; SaveError and PushError are OSErrors.
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, FloatingPointError)
INTERRUPTED = 130  # the status of a program that ended on Ctrl-C
_PROGRAM: ContextVar[str | None] = ContextVar("program", default=None)


def program_name() -> str:
    """Return what was started: `famus-hf train`, or the name of a script."""
    return _PROGRAM.get() or Path(sys.argv[0]).name


def fail(message: object) -> NoReturn:
    """End the program with one sentence on standard error."""
    print(f"{program_name()}: error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def started_as(
    program: str, show_traceback: bool = False, errors: tuple[type[Exception], ...] = USER_ERRORS
) -> Iterator[None]:
    """Name the program in its errors, and end it with one sentence on an error that users can cause, or on Ctrl-C.

    Args:
        program: Its name on the command line.
        show_traceback: Let such errors through, for those who look for a bug.
        errors: What users can cause.
    """
    token = _PROGRAM.set(program)
    try:
        yield
    except KeyboardInterrupt as error:
        print(f"{program}: interrupted{''.join(f'; {advice}' for advice in error.args)}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except errors as error:
        if show_traceback:
            raise
        fail(error)
    finally:
        _PROGRAM.reset(token)
