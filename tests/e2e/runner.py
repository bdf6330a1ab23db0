"""Runs a file of end-to-end tests. Standard library alone."""
import sys
import time
import traceback


def run_tests(module):
    """Runs every function test_*, prints a line for each, exits 1 if one failed."""
    failed = 0
    names = [n for n in sorted(vars(module)) if n.startswith("test_")]
    only = sys.argv[1:]
    for name in names:
        if only and name not in only:
            continue
        begin = time.monotonic()
        try:
            vars(module)[name]()
            print(f"ok      {name} ({time.monotonic() - begin:.1f} s)", flush=True)
        except Exception as error:  # a test's failure must not hide the others
            traceback.print_exc(file=sys.stdout)
            print(f"FAILED  {name}: {error}", flush=True)
            failed += 1
    sys.exit(1 if failed else 0)
