"""Puts pages that live elsewhere in the repository into the site, so that no page is there twice.

The studies in `results/`, and CONTRIBUTING and CHANGELOG beside this folder. A page of `docs/` links to them as it
does in the repository, by `../results/...`; they link back by `../../docs/...`.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OTHERS = ["CONTRIBUTING.md", "CHANGELOG.md", "results/PROTOCOL.md", "results/**/*.md", "results/**/*.png"]


def on_files(files: Files, config: Any) -> Files:
    for path in sorted(path for pattern in OTHERS for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """In the site `docs/` is the root: links from there need one `../` less, and links to it no `docs/`."""
    if files.src_uris[page.file.src_uri].generated_by:
        return re.sub(r"(?<=\]\()((?:\.\./)*)docs/", r"\1", markdown)
    return re.sub(r"(?<=\]\()\.\./(?=results/|CONTRIBUTING\.md|CHANGELOG\.md)", "", markdown)
