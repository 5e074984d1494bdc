"""The notebooks with their outputs, as pages to read: docs/, from the executed copies of a run.

python lab.py run
python benchmarks/pages.py smollm2-135m   the run's name or folder
"""

import argparse
import html
import shutil
import time
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExtractOutputPreprocessor
from pygments.formatters import HtmlFormatter

from finelab.files import staged
from finelab.run import NOTEBOOKS, RUNS, open_run

DOCS = Path(__file__).parents[1] / "docs"
STYLE = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #444); --code: light-dark(#f6f6f4, #1d2125); }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; padding-bottom: .6rem;
  border-bottom: 1px solid var(--line); }
pre { overflow-x: auto; font: 13px/1.45 ui-monospace, monospace; margin: 0; }
.highlight { background: var(--code); border-radius: 6px; padding: .6rem .8rem; margin-top: .8rem; }
.jp-OutputArea-output, .output { overflow-x: auto; padding: .4rem .8rem; border-left: 3px solid var(--line); }
footer { border-top: 1px solid var(--line); margin-top: 2rem; padding: .6rem 0; }
img { max-width: 100%; background: #fff; }
table { border-collapse: collapse; }
td, th { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; }
.jp-InputPrompt, .jp-OutputPrompt, .anchor-link, .jp-Collapser { display: none; }
@media (prefers-color-scheme: dark) { .highlight { filter: invert(.92) hue-rotate(180deg); } }
"""
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="stylesheet" href="style.css">
<nav>{links}</nav>
{body}
<footer>{footer}</footer>
</html>
"""


def main() -> None:
    """Write docs/ anew, whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run that has been through all notebooks: its name or folder")
    asked = parser.parse_args().run
    run = open_run(asked if Path(asked).is_dir() else RUNS / asked)
    names = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    executed = {name: run.notebooks / f"{name}.ipynb" for name in names}
    executed = {name: path for name, path in executed.items() if path.exists()}
    device = run.evidence()["machine"]["device"]
    day = time.strftime("%Y-%m-%d")
    footer = f"Executed on {device}, {day}. Another machine measures other times."
    with staged(DOCS) as stage:
        colours = HtmlFormatter(style="friendly").get_style_defs(".highlight")
        (stage / "style.css").write_text(STYLE + colours, encoding="utf-8")
        for name, path in executed.items():
            text = page(path, list(executed), footer, stage)
            text = text.replace(str(run.folder.parent), "runs").replace(str(Path.home()), "~")
            (stage / f"{name}.html").write_text(text, encoding="utf-8")
            # the card's own, which notebook 04 shows
            for figure in (run.folder / "figures").glob("*.png"):
                if f'src="{figure.name}"' in text:
                    shutil.copyfile(figure, stage / figure.name)
        first = next(iter(executed))
        (stage / "index.html").write_text(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={first}.html">\n', encoding="utf-8"
        )
    size = sum(path.stat().st_size for path in DOCS.iterdir())
    print(f"{len(executed)} pages, {size / 1e6:.1f} MB")


def page(path: Path, names: list[str], footer: str, stage: Path) -> str:
    """One notebook as a page; its pictures go beside it."""
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_preprocessor(ExtractOutputPreprocessor(), enabled=True)
    resources = {"unique_key": path.stem, "output_files_dir": "."}
    body, found = exporter.from_notebook_node(nbformat.read(path, as_version=4), resources)
    for name, data in found["outputs"].items():
        (stage / name).write_bytes(data)
    links = " ".join(f'<a href="{name}.html">{html.escape(name)}</a>' for name in names)
    title, footer = html.escape(f"finelab: {path.stem}"), html.escape(footer)
    return PAGE.format(title=title, links=links, body=body, footer=footer)


if __name__ == "__main__":
    main()
