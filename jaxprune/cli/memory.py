"""Huge pages for programs that train on a CPU.

XLA asks the system for its temporaries anew in every step. In pages of 4 kB a small model spends a fifth of its time on
taking them: 39,000 a step of 64 clips with the micro AST. glibc can ask for pages of 2 MB, but reads that wish only
when a process starts.
"""

import os
import sys

VARIABLE = "GLIBC_TUNABLES"
WISH = "glibc.malloc.hugetlb=1"


def restart_with_huge_pages() -> None:
    """Starts the running program anew with the wish for huge pages, in the same process, and does not return.

    Returns, having done nothing, where the variable is set already (to anything), without glibc, and where `sys.argv`
    is not the process's own command line, because the caller is then not the program but runs inside another.
    """
    own = sys.argv[1:] == sys.orig_argv[len(sys.orig_argv) - len(sys.argv) + 1 :]
    if VARIABLE in os.environ or not own or not _is_glibc():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, os.environ | {VARIABLE: WISH})


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError, OSError):
        return False
