#!/usr/bin/env python3
"""The pages of the documentation, as GitHub shows them and as Doxygen takes them.

pages.py FILE               prints a page for Doxygen: with an id for each heading, and links by them.
pages.py --check FILE...    says which links lead nowhere: to a file or a heading that does not exist.

Doxygen's ids are unique over all pages: "serving.md#when-full" becomes serving-when-full, and the
page itself page-serving. Of links to files that are neither pages nor pictures, the text stays.
"""

import pathlib
import re
import sys

LINK = re.compile(r"\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s]+)\)")


def slug(heading):
    """The id that GitHub gives a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def parts(path):
    """The lines of a page: (line, its heading as (level, text) or None, whether links count)."""
    code = False
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            code = not code
        heading = None if code else re.match(r"(#+) (.*)", line)
        yield line, heading and heading.groups(), not code and not line.startswith("    ")


def for_doxygen(path):
    page, begun = path.stem, False

    def link(match):
        text, target = match.groups()
        if re.match(r"[a-z]+:", target):
            return match.group(0)
        file, _, anchor = target.partition("#")
        if file.endswith((".svg", ".png")):
            return match.group(0)
        if file and not file.endswith(".md"):
            return text
        other = pathlib.PurePath(file).stem if file else page
        text = text.replace("`", "")  # which Doxygen would show
        return f"[{text}](@ref {f'{other}-{anchor}' if anchor else f'page-{other}'})"

    for line, heading, links in parts(path):
        if heading:
            name = f"{page}-{slug(heading[1])}" if begun else f"page-{page}"
            begun = True
            print(f"{heading[0]} {heading[1]} {{#{name}}}")
        else:
            print(LINK.sub(link, line) if links else line)


def wrong_links(path):
    for number, (line, _, links) in enumerate(parts(path), 1):
        for _, target in LINK.findall(line) if links else ():
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            other = (path.parent / file) if file else path
            if not other.exists():
                yield f"{path}:{number}: {target}: no such file"
            elif anchor and anchor not in {slug(h[1]) for _, h, _ in parts(other) if h}:
                yield f"{path}:{number}: {target}: no such heading"


if sys.argv[1] == "--check":
    wrong = [text for name in sys.argv[2:] for text in wrong_links(pathlib.Path(name))]
    print("\n".join(wrong) if wrong else f"{len(sys.argv) - 2} pages, all links lead somewhere")
    sys.exit(bool(wrong))
for_doxygen(pathlib.Path(sys.argv[1]))
