"""Children of a process that has imported everything already: much cheaper than new processes."""

import gc
import os
import sys
import traceback


def forked(work, *arguments):
    """The process id of a child that runs `work` and ends with 0 if that raised nothing."""
    child = os.fork()
    if child:
        return child
    gc.freeze()  # the parent's: a collection in the child need not look at it
    try:
        work(*arguments)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended_by(child):
    """0, or the signal that killed it; a child that failed ends everything."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        sys.exit("a training failed")
    return 0
