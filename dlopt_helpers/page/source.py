"""The helper's own code, shown on the page beside its formula."""

import ast
import inspect
import textwrap

from IPython.display import Markdown

from dlopt_helpers._require import require_bool


def source(thing, docstring=False):
    """Return the source of a class or function as a highlighted block.

    The page shows what runs: there is no second copy of the code in the book.

    Args:
      thing: a class, function or method.
      docstring: keep the docstrings, which the chapter's prose already covers.

    Raises:
      TypeError: if ``thing`` has no Python source, for example a number or a built-in.
      ValueError: if ``docstring`` is neither True nor False.

    Example:
      >>> print(source(source).data.splitlines()[1])
      def source(thing, docstring=False):
    """
    require_bool(docstring=docstring)
    try:
        code = textwrap.dedent(inspect.getsource(thing))
    except TypeError:
        raise TypeError(f"thing={thing!r} is not allowed: it must be a class, function or method") from None
    if not docstring:
        code = _without_docstrings(code)
    return Markdown(f"```python\n{code.strip()}\n```")


def _without_docstrings(code):
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            for number in range(first.lineno - 1, first.end_lineno):
                lines[number] = None
            # the blank line that set the docstring apart goes with it
            if first.end_lineno < len(lines) and lines[first.end_lineno] == "":
                lines[first.end_lineno] = None
    return "\n".join(line for line in lines if line is not None)
