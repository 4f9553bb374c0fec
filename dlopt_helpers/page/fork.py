"""A book of your own: ``python -m dlopt_helpers.page.fork owner/name`` gives it another repository.

The address in ``_config.yml`` is replaced by the new one wherever it stands: in each chapter's set-up cell,
in badges, citation and recipes. Needs nothing but Python and git.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from dlopt_helpers.page.notebooks import setup_cell

ADDRESS = re.compile(r"^  url: https://github\.com/(\S+)$", re.MULTILINE)
# What GitHub allows: letters, digits and hyphens in an owner's name, dots and underscores too in a book's.
REPOSITORY = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*/[A-Za-z0-9._-]+")


def forked(text, old, new, version=None):
    """Return ``text`` with the repository ``new`` where ``old`` stood.

    Args:
      text: of a file; of a notebook, if ``version`` is given.
      old: ``owner/name``.
      new: ``owner/name``.
      version: of the package. A set-up cell is made anew, since another address breaks its lines elsewhere.

    Example:
      >>> forked("see github.com/a/book, not a/bookshelf", "a/book", "b/notes")
      'see github.com/b/notes, not a/bookshelf'
    """
    if version:
        notebook = json.loads(text)
        before, after = (setup_cell(f"https://github.com/{r}", version) for r in (old, new))
        for cell in notebook["cells"]:
            if "".join(cell["source"]) == before:
                cell["source"] = after.splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w-])", lambda _: new, text)


def fork(root, new):
    """Give the book in ``root`` the repository ``new``; write all files or none.

    Args:
      root: of a git checkout.
      new: ``owner/name``.

    Returns:
      The old repository and the paths of the files that changed.

    Raises:
      ValueError: if ``new`` is no ``owner/name``, or ``_config.yml`` names no repository on GitHub.
    """
    if not REPOSITORY.fullmatch(new) or new.endswith(".git"):
        raise ValueError(f"REPO={new!r} is not allowed: it must be owner/name, such as your-name/dlopt")
    root = Path(root)
    found = ADDRESS.search((root / "_config.yml").read_text(encoding="utf-8"))
    if not found:
        raise ValueError("_config.yml names no repository of the form https://github.com/owner/name")
    old, version = found[1], _version(root)
    changed = {}
    for path in _files(root):
        text = path.read_text(encoding="utf-8")
        after = forked(text, old, new, version if path.suffix == ".ipynb" else None)
        if after != text:
            changed[path] = after
    for path, text in changed.items():
        path.with_name(path.name + ".new").write_text(text, encoding="utf-8")
    for path in changed:
        os.replace(path.with_name(path.name + ".new"), path)
    return old, sorted(changed)


def _files(root):
    """Return the checkout's text files: those of git, and new ones that it does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [root / name for name in names if name and (root / name).is_file()]
    return [path for path in paths if b"\0" not in path.read_bytes()]


def _version(root):
    text = (root / "dlopt_helpers" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def main(arguments):
    """Fork the book in the current folder; print what changed and what is left to do."""
    try:
        old, changed = fork(Path.cwd(), arguments[0] if arguments else "")
    except ValueError as error:
        sys.exit(str(error))
    for path in changed:
        print(path.relative_to(Path.cwd()))
    tag = f"v{_version(Path.cwd())}"
    print(f"\n{len(changed)} files named {old}. Commit, and push with the tag {tag}.")


if __name__ == "__main__":
    main(sys.argv[1:])
