"""The Sphinx extension of the book: pages whose charts are alive and that ask nothing of other origins."""

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

from dlopt_helpers.page.explorer import write_assets
from dlopt_helpers.page.slides import write_slides

PACKAGE = Path(__file__).parents[1]
CODE = (".py", ".js", ".css", ".csv", ".jsonl")  # and what code reads
TOOLS = ("fork.py", "handouts.py", "slides.py", "slides.css")  # no cell runs them
# Kernels inherit these: no widget beside the HTML that a page shows, and no notes from TensorFlow.
QUIET = {"DLOPT_STATIC": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


def setup(app):
    """Register the extension with Sphinx."""
    os.environ.update(QUIET)
    # A value of kind "env" that changed makes Sphinx read every page anew.
    app.add_config_value("dlopt_code", code_digest(Path(app.srcdir)), "env")
    app.connect("config-inited", choose_cache)
    app.connect("builder-inited", write_static)
    app.connect("html-page-context", complete_page, priority=900)
    app.connect("build-finished", drop_icon_script)
    app.connect("build-finished", make_slides)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def code_digest(book):
    """Return a digest of what cells run besides themselves: the helpers, their data, the pinned packages."""
    digest = hashlib.sha256()
    files = [p for p in PACKAGE.rglob("*") if p.suffix in CODE and p.name not in TOOLS]
    for path in [*sorted(files), book / "requirements.lock"]:
        if path.exists():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def choose_cache(app, config):
    """Keep executed notebooks under the digest of the code they ran, and drop those of other code."""
    caches = Path(app.outdir).parent / ".jupyter_cache"
    config.nb_execution_cache_path = str(caches / config.dlopt_code)
    for old in caches.glob("*"):
        if old.name != config.dlopt_code:
            shutil.rmtree(old, ignore_errors=True)


def write_static(app):
    """Write what pages share: Vega and the explorer, MathJax and its fonts, and their licences."""
    static = Path(app.outdir, "_static")
    write_assets(static / "dlopt")
    offline = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    shutil.copytree(offline / fonts, static / "mathjax" / fonts, dirs_exist_ok=True)
    shutil.copy(offline / "tex-mml-chtml.js", static / "mathjax")
    shutil.copytree(Path(app.srcdir, "LICENSES"), static / "licenses", dirs_exist_ok=True)


def complete_page(app, pagename, templatename, context, doctree):
    """Add the explorer's files to the pages that hold one."""
    if 'class="dlopt-explorer"' in context.get("body", ""):
        app.add_css_file("dlopt/explorer.css")
        for script in ("vega.js", "explorer.js"):
            app.add_js_file(f"dlopt/{script}", loading_method="defer")


def drop_icon_script(app, error):
    """Empty the theme's icon script: 540 kB gzipped on every page, for icons its fonts draw already."""
    if not error and app.builder.format == "html":
        scripts = Path(app.outdir, "_static", "scripts")
        (scripts / "fontawesome.js").write_text("// The icons come from the fonts.\n", encoding="utf-8")
        for source_map in scripts.glob("*.map"):
            source_map.unlink()


def make_slides(app, error):
    """Turn the chapters, executed by now, into slides beside the pages."""
    if not error and app.builder.format == "html":
        write_slides(Path(app.outdir).parent)
