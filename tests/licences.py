"""Prints the licence of every package in requirements.lock, as a table: `make lock` keeps it in LICENSES."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).parents[1] / "requirements.lock"
# Read by hand: metadata and text do not say it, or the package is not for every system.
BY_HAND = {
    "appnope": "BSD-2-Clause",
    "backports-strenum": "MIT AND Python-2.0",
    "certifi": "MPL-2.0",
    "colorama": "BSD-3-Clause",
    "defusedxml": "PSF-2.0",
    # The GPL is for a file of an editor, which the package does not install.
    "docutils": "BSD-2-Clause AND PSF-2.0 AND LicenseRef-Public-Domain",
    "flatbuffers": "Apache-2.0",
    "libclang": "Apache-2.0 WITH LLVM-exception",
    "matplotlib": "LicenseRef-matplotlib",  # as PSF-2.0, with another name in it
    "onnxruntime": "MIT",
    "overrides": "Apache-2.0",
    "pywinpty": "MIT",
    "sphinx-mathjax-offline": "Apache-2.0",
    "sphinxcontrib-applehelp": "BSD-2-Clause",
    "sphinxcontrib-devhelp": "BSD-2-Clause",
    "sphinxcontrib-htmlhelp": "BSD-2-Clause",
    "sphinxcontrib-qthelp": "BSD-2-Clause",
    "sphinxcontrib-serializinghtml": "BSD-2-Clause",
    "tensorflow": "Apache-2.0",
    "tensorflow-cpu": "Apache-2.0",
    "tqdm": "MPL-2.0 AND MIT",
}
# How the text of a licence begins. A file may hold several: that of the package comes first.
TEXTS = {
    r"Apache License": "Apache-2.0",
    r"Permission is hereby granted, free of charge": "MIT",
    r"Permission to use, copy, modify,( and/or| and)? distribute": "ISC",
    r"Redistribution and use in source and binary forms.{,1500}endorse or promote": "BSD-3-Clause",
    r"Redistribution and use in source and binary forms": "BSD-2-Clause",
}


def pins(lock=LOCK):
    """Return the requirements of a lock file, without their hashes."""
    lines = re.findall(r"^\w[^\\\n]+", lock.read_text(), re.MULTILINE)
    return [Requirement(line) for line in lines]


def licence(name):
    """Return the licence of a package in SPDX's terms.

    Raises:
      SystemExit: neither its metadata nor its text nor the table above says it.
    """
    if name in BY_HAND:
        return BY_HAND[name]
    try:
        package = distribution(name)
    except PackageNotFoundError:
        sys.exit(f"{name} is not installed here: write its licence into {__file__}")
    if said := package.metadata["License-Expression"]:
        return said
    own = [f for f in package.files if re.match(r"(licen[cs]e|copying)", f.name, re.IGNORECASE)]
    text = " ".join(" ".join(f.read_text(encoding="utf-8").split()) for f in own[:1])
    found = [(m.start(), n) for n, words in enumerate(TEXTS) if (m := re.search(words, text, re.IGNORECASE))]
    if not found:
        sys.exit(f"{name} does not say its licence: write it into {__file__}")
    return list(TEXTS.values())[min(found)[1]]


def table(requirements):
    """Return a Markdown table of packages, versions and licences."""
    rows = [f"| {r.name} | {next(iter(r.specifier)).version} | {licence(r.name)} |" for r in requirements]
    return "\n".join(["| package | version | licence |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print("# Licences of the pinned packages\n")
    print("Made by `make lock`. A package may carry libraries of others: its own files name them.\n")
    print(table(pins()))
