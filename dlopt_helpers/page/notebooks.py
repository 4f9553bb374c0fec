"""Chapters as files: their set-up cell, and the only outputs they store, those of claims.

``python -m dlopt_helpers.page.notebooks chapters/*.ipynb`` executes each notebook and keeps exactly the
outputs of the cells tagged ``nbval-check-output``.
"""

import re
import sys
import textwrap

CHECKED = "nbval-check-output"
FOLDING = ("cellView", "jupyter", "mystnb", "tags")  # how Colab, JupyterLab and the book fold a cell
# Colab's protobuf is too old for ONNX 1.23.
ON_COLAB_MISSING = """
    ai-edge-litert autoray backports.strenum colorlog mnist1d 'onnx<1.23' onnx-ir onnxruntime onnxscript
    optuna schedulefree torch-pruning vl-convert-python
"""


def setup_cell(repository, version):
    """Return the first code cell of every chapter.

    It does nothing where the package is installed. Elsewhere, as on Colab, it installs the tag of this
    version and what Colab lacks, and leaves NumPy, the frameworks and ipywidgets as they are.

    Args:
      repository: the address of the repository, as in ``_config.yml``.
      version: the version of the package, whose tag is ``v`` and the version.

    Raises:
      ValueError: if one of both is no text.

    Example:
      >>> print(setup_cell("https://github.com/owner/book", "0.1.0").splitlines()[2])
      if importlib.util.find_spec("dlopt_helpers") is None:
    """
    for name, value in (("repository", repository), ("version", version)):
        if not (isinstance(value, str) and value.strip()):
            raise ValueError(f"{name}={value!r} is not allowed: it must be text, as in _config.yml")
    words = [*ON_COLAB_MISSING.split(), f"git+{repository}@v{version}"]
    wanted = textwrap.wrap(" ".join(words), 66, break_on_hyphens=False)
    lines = [" %pip install -q --no-deps", *wanted]
    return (
        "import importlib.util\n\n"
        'if importlib.util.find_spec("dlopt_helpers") is None:\n   ' + " \\\n        ".join(lines)
    )


def linked(text, address):
    """Return the Markdown of a chapter with links that hold elsewhere, given the chapter's address there.

    Example:
      >>> linked("[Here](#proof), [there](03_2_adam.ipynb#proof)", "https://x.org/03_1_sgd.html")
      '[Here](https://x.org/03_1_sgd.html#proof), [there](https://x.org/03_2_adam.html#proof)'
    """
    folder, _, page = address.rpartition("/")
    text = text.replace("](#", f"]({address}#")
    return re.sub(r"\]\((\w+)\.ipynb", rf"]({folder}/\1.{page.rpartition('.')[2]}", text)


def keep_claims(notebook):
    """Strip the notebook in place: no timings, and of the outputs those of checked cells.

    A checked cell counts as run once, since nbval wants a count beside an output; others as not run.
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {key: cell.metadata[key] for key in FOLDING if cell.metadata.get(key)}
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs) if CHECKED in tags else []
            cell.execution_count = 1 if cell.outputs else None


def _joined(outputs):
    """Return the outputs with what was printed in several pieces as one: how many there are is chance."""
    joined = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and last.output_type == output.output_type == "stream" and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def main(paths):
    """Execute each notebook in its folder and write it back with the outputs of its claims."""
    import nbformat
    from nbclient import NotebookClient

    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=1_800, kernel_name="python3").execute()
        keep_claims(notebook)
        nbformat.write(notebook, path)
        print(f"{path}: {sum(bool(cell.get('outputs')) for cell in notebook.cells)} checked outputs stored")


if __name__ == "__main__":
    main(sys.argv[1:])
