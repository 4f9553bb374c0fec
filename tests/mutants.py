"""Plant famous faults one by one, and see which test catches each: ``make mutants``.

A fault of ``mutants.toml`` is a patch of one module's source: a text that occurs there once, and what stands
in its place. It is made in memory, while a process of its own imports the module; no file changes. The faulty
code has the key of the right one: so nothing published is taken, and what tests keep goes to a folder of that
process.

A fault is caught if a test fails that passes without it. Whatever else happens is an error: it survives, its
text is gone or comes twice, its module does not load, or the tests do not load its module. Processes that a
test starts run the code as it is.

``python tests/mutants.py sgd lab.sweep`` tries the faults of these modules alone.
"""

import ast
import functools
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import multiprocessing
import os
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# Without what a verdict has no use for: pytest's plugins take longer to load than most of the tests to run.
OPTIONS = "-q --assert=plain --tb=native -p no:cacheprovider -p _hypothesis_pytestplugin -p pytest_timeout"
PYTEST = [*OPTIONS.split(), "--timeout=0", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
AT_MOST = 1_800  # seconds of a process: what hangs, or waits for a busy machine, is not caught
# Each process is a fork of one that has loaded the large libraries, and nothing of this package.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "hypothesis", "pandas", "scipy.stats", "torch._dynamo", "keras", "tensorflow", "onnxruntime"]
)


class Fault(NamedTuple):
    """A patch of ``dlopt_helpers.<module>``, and the test files that should catch it."""

    module: str
    name: str
    old: str
    new: str
    tests: list

    @property
    def file(self):
        return ROOT / "dlopt_helpers" / (self.module.replace(".", "/") + ".py")

    def source(self):
        """Return the module's source with the fault.

        Raises:
          ValueError: if the text is not there exactly once, or the patch leaves no other Python code.
        """
        right, where = self.file.read_text(encoding="utf-8"), f"{self.module}: {self.name}"
        if (times := right.count(self.old)) != 1:
            raise ValueError(f"{where}: its text occurs {times} times, not once: {self.old!r}")
        wrong = right.replace(self.old, self.new)
        try:
            same = _code(wrong) == _code(right)
        except SyntaxError as error:
            raise ValueError(f"{where}: it is no Python: {error}") from None
        if same:
            raise ValueError(f"{where}: it changes no code")
        return wrong


@functools.cache
def _code(text):
    return ast.dump(ast.parse(text))


def faults():
    """Return the faults of ``mutants.toml``, whose fourth part, if there is one, names a test of the file."""
    modules = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return [
        Fault(module, name, old, new, [f"{part['tests'][0]}::{test}" for test in own] or part["tests"])
        for module, part in modules.items()
        for name, old, new, *own in part["faults"]
    ]


# --- in the process of a fault -----------------------------------------------------------------------


class Planted(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finder and loader of the one module that has the fault."""

    def __init__(self, fault):
        super().__init__(f"dlopt_helpers.{fault.module}", str(fault.file))
        self.text, self.loaded = fault.source(), False

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, name):  # never from or to the compiled files
        # Whoever asks for the source, as TensorFlow does to translate it, gets the faulty one.
        linecache.cache[self.path] = len(self.text), None, self.text.splitlines(keepends=True), self.path
        return compile(self.text, self.path, "exec", dont_inherit=True)

    def exec_module(self, module):
        super().exec_module(module)
        self.loaded = True


class Watch:
    """What pytest reports: what could not be collected, and which tests failed, why, and how many passed."""

    def __init__(self):
        self.broken, self.failed, self.passed = [], {}, 0

    def pytest_collectreport(self, report):
        self.broken += [report.nodeid] if report.failed else []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed[report.nodeid] = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
        self.passed += report.passed and report.when == "call"


def _run_tests(send, folder, tests, fault):
    """Run the tests and send what came of them."""
    import pytest
    from hypothesis import HealthCheck, settings
    from joblib.externals.loky import get_reusable_executor

    with open(f"{folder}/log", "w") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    os.environ |= {"DLOPT_CACHE": f"{folder}/cache", "HYPOTHESIS_STORAGE_DIRECTORY": f"{folder}/hypothesis"}
    os.environ |= {"DLOPT_TRAIN": "always", "DLOPT_JOBS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.chdir(ROOT)
    # The same draws each time, and no failure because a machine is busy.
    calm = {"derandomize": True, "deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("mutants", **calm)
    settings.load_profile("mutants")
    gc.freeze()  # the large libraries: there is nothing to collect in them
    watch, first = Watch(), []
    if fault:
        sys.meta_path.insert(0, planted := Planted(fault))
        first = ["-x"]
    pytest.main([*PYTEST, *first, *tests], plugins=[watch])
    get_reusable_executor().shutdown()  # else its processes wait five minutes for more to do
    send.send({"loaded": not fault or planted.loaded, "seconds": time.process_time(), **vars(watch)})


# --- in the process that starts them -----------------------------------------------------------------


def tried(tests, fault=None):
    """Run ``tests`` in a process of their own, with or without a fault, and return what was seen."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        receive, send = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_run_tests, args=(send, folder, tests, fault))
        process.start()
        send.close()
        try:
            seen = receive.recv() if receive.poll(AT_MOST) else {}
        except EOFError:  # it died
            seen = {}
        process.join(10)  # what it has started ends with it
        process.kill()
        process.join()
        log = Path(folder, "log")
        end = log.read_text(errors="replace")[-1000:] if log.exists() else ""
        return {"seconds": 0, **seen, "end": end}


def verdict(seen):
    """Return ``("caught", test)``, ``("survived", "")`` or ``("invalid", why)``."""
    if "loaded" not in seen:
        return "invalid", f"the process ended without a result: {seen['end']}"
    if not seen["loaded"]:
        return "invalid", "the tests do not load the module, or it does not load"
    if seen["broken"]:
        return "invalid", f"pytest could not collect {seen['broken'][0]}"
    for test, message in seen["failed"].items():
        if message.startswith(("NameError", "UnboundLocalError")):
            return "invalid", f"the patch itself is wrong: {message}"
        return "caught", test
    return ("survived", "") if seen["passed"] else ("invalid", f"no test ran: {seen['end']}")


def main(modules):
    """Try the faults of ``modules``, or all, and print a table; return whether anything is amiss."""
    planted = faults()
    known = {fault.module for fault in planted}
    wrong = [f"no fault is planted in {module!r}" for module in modules if module not in known]
    for fault in planted:
        try:
            fault.source()
        except ValueError as error:
            wrong.append(str(error))
    chosen = [fault for fault in planted if not modules or fault.module in modules]
    if wrong or not chosen:
        print("Nothing was tried:", *wrong or ["there are no faults"], sep="\n  ")
        return True
    begin, tests = time.perf_counter(), []
    print(f"{'module':<26} {'fault':<52}  CPU s  caught by")
    with ThreadPoolExecutor(int(os.environ.get("JOBS") or 2)) as pool:
        for fault, seen in zip(chosen, pool.map(lambda f: tried(f.tests, f), chosen), strict=True):
            word, what = verdict(seen)
            if word == "caught":
                tests.append(what)
            else:
                wrong.append(f"{word}: {fault.module}: {fault.name} {what}".rstrip())
            shown = what if word == "caught" else word.upper()
            print(f"{fault.module:<26} {fault.name:<52} {seen['seconds']:6.1f}  {shown}", flush=True)
    wrong += _not_green(sorted({*tests}))
    print(f"\n{len(tests)} of {len(chosen)} faults caught in {time.perf_counter() - begin:.0f} s. Amiss:")
    print(*wrong or ["nothing"], sep="\n")
    return bool(wrong)


def _not_green(tests):
    """Return what is wrong with the tests that caught something, run without a fault."""
    seen = tried(tests) if tests else {"passed": 0, "failed": {}}
    wrong = [f"fails without a fault, too: {test}" for test in seen.get("failed", {})]
    if (passed := seen.get("passed", 0)) != len(tests) and not wrong:
        wrong = [f"of {len(tests)} tests that caught something {passed} pass without a fault: {seen['end']}"]
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
