"""A pytest plugin for a Python without frameworks: a test that calls one is skipped, all others run."""

import sys
from importlib.machinery import ModuleSpec

import pytest


class Absent(type):
    """A class for each name in a framework. It may be named and asked after, and a call skips the test."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name, (), {})

    def __call__(cls, *args, **kwargs):
        pytest.skip("calls a framework", allow_module_level=True)


class Finder:
    """Finds the frameworks, and nothing in them."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return ModuleSpec(name, Finder) if name.split(".")[0] in ("keras", "tensorflow", "torch") else None

    @staticmethod
    def create_module(spec):
        return Absent(spec.name, (), {"__path__": ()})

    @staticmethod
    def exec_module(module):
        pass


sys.meta_path.append(Finder)  # behind those that would find a real one
