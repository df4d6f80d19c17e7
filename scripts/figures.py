#!/usr/bin/env python3
"""Sizes of Rust code, for docs/architecture.md.

    figures.py [NAME=FOLDER]...

Prints one row of a Markdown table for each folder; without arguments, for the crates of this
repository. `per file` and `per function` give the median and the 90th percentile.

A line counts if it has more than white space and comments. Test code is left out: items marked
`#[test]`, `#[cfg(test)]` or `#[cfg(all(test, …))]`, the files of modules so marked, files named
tests.rs, and folders named tests. A function with a body counts from its signature to its closing
brace. Public items are those declared `pub` without restriction: functions, types, traits,
constants, fields, variants of public enums and items of public traits, but no modules and
re-exports. The script does not check whether another crate can reach them. For a program, which
has none, it counts those that are `pub(crate)`.
"""

import math
import re
import statistics
import sys
from pathlib import Path

OWN = [f"{crate}={crate}/src" for crate in ("vmm-core", "migrate", "memopt", "metrics", "regular-file")]
OWN += ["program=src"]
QUALIFIER = r"(?:const|async|unsafe|extern\s+s+|extern)\s+"  # Of a function; an ABI is masked.
DOC = "\x01"  # Stands for the text of an outer documentation comment.

TOKEN = re.compile(
    r"""(?P<doc>///(?!/)[^\n]*)|(?P<line>//[^\n]*)|(?P<block>/\*)
      |(?P<raw>\b(?:b|c)?r(?P<hash>\#*)".*?"(?P=hash))
      |(?P<text>"(?:\\.|[^"\\])*")|(?P<char>'(?:\\(?:u\{[^}]*\}|x..|.)|[^\\'\n])')""",
    re.S | re.X,
)


def mask(source):
    """The source without comments and text; the rest stays in its place."""
    out, at = [], 0
    fill = lambda text, by: re.sub(r"[^\n]", by, text)
    while found := TOKEN.search(source, at):
        out.append(source[at : found.start()])
        kind, end = found.lastgroup, found.end()
        if kind == "block":
            depth, is_doc = 1, re.match(r"/\*\*(?![*/])", source[found.start() :])
            while depth and (mark := re.compile(r"/\*|\*/").search(source, end)):
                depth, end = depth + (1 if mark[0] == "/*" else -1), mark.end()
            end = end if depth == 0 else len(source)
            by = DOC if is_doc else " "
        else:
            by = {"doc": DOC, "line": " "}.get(kind, "s")
        out.append(fill(source[found.start() : end], by))
        at = end
    return "".join(out) + source[at:]


def closing(code, at):
    """The place behind the bracket that closes the one at `at`."""
    depth = 0
    for mark in re.compile(r"[(\[{}\])]").finditer(code, at):
        depth += 1 if mark[0] in "([{" else -1
        if depth == 0:
            return mark.end()
    return len(code)


def end_of_item(code, at):
    """The place behind the item at `at`: its block, its semicolon, or the comma of a field."""
    head = re.compile(rf"\s*(?:pub(?:\([^)]*\))?\s+)?(?:{QUALIFIER})*(\w+)").match(code, at)
    word = head[1] if head else ""
    has_block = word in "fn mod impl struct enum union trait macro_rules".split()
    stops = "[;{(\\[]" if has_block else "[;,{(\\[})\\]]"
    constant = re.compile(r"\s*(?:pub\S*\s+)?const\s+(?!fn|unsafe)").match(code, at)
    if word in ("use", "static", "type", "let") or constant:
        stops, has_block = "[;{(\\[]", False
    while mark := re.compile(stops).search(code, at):
        if mark[0] in ";,":
            return mark.end()
        if mark[0] in "})]":
            return mark.start()
        at = closing(code, mark.start())
        if mark[0] == "{" and has_block:
            return at
    return len(code)


TEST = re.compile(r"#\[(?:cfg\((?:all\()?test\b|test\])")


def cut_tests(code, path):
    """The code without what is compiled for tests alone, and the files of modules that are."""
    files, at = [], 0
    while found := TEST.search(code, at):
        start, item = found.start(), closing(code, found.start() + 1)
        while attribute := re.compile(r"[\s\x01]*#\[").match(code, item):
            item = closing(code, attribute.end() - 1)
        end = end_of_item(code, item)
        if module := re.match(r"[\s\x01]*(?:pub\S*\s+)?mod\s+(\w+)\s*;", code[item:end]):
            is_root = path.stem in ("mod", "lib", "main")
            folder = path.parent if is_root else path.parent / path.stem
            files.append(folder / module[1])
        code, at = code[:start] + re.sub(r"[^\n]", " ", code[start:end]) + code[end:], end
    return code, files


def lines(code):
    return sum(1 for line in code.split("\n") if line.strip(" \t\r" + DOC))


def functions(code):
    """The lines of each function that has a body."""
    for found in re.finditer(r"\bfn\s+\w+", code):
        at = found.end()
        while mark := re.compile(r"[;{(\[]").search(code, at):
            at = closing(code, mark.start())
            if mark[0] == "{":
                yield lines(code[found.start() : at])
            if mark[0] in "{;":
                break


def has_docs(code, at):
    """Whether a documentation comment, or an attribute for it, stands before the item at `at`."""
    while True:
        before = code[:at].rstrip()
        if before.endswith(DOC):
            return True
        if not before.endswith("]"):
            return False
        depth, at = 0, len(before)
        while at and (depth or at == len(before)):
            at -= 1
            depth += {"]": 1, "[": -1}.get(before[at], 0)
        if before[at - 1 : at] != "#":
            return False
        if re.match(r"\[\s*doc\b", before[at:]):
            return True
        at -= 1


KIND = r"(?:fn|struct|enum|union|trait|type|const|static)\s+(?:mut\s+)?\w+"
ITEM = rf"(?:{QUALIFIER})*{KIND}"


def items(code, visibility):
    """The places of public items, fields, variants and items of traits."""
    for found in re.finditer(rf"(?<![\w.$]){visibility}\s+(?:({ITEM})|(?:r#)?\w+\s*:(?!:))", code):
        yield found.start()
        kind = re.search(r"\b(enum|trait)\s", found[1] or "")
        body = re.compile(r"[{;]").search(code, found.end())
        if not kind or not body or body[0] == ";":
            continue
        end, at = closing(code, body.start()) - 1, body.end()
        while start := re.compile(r"(?:[\s,\x01]|#\[)*").match(code, at, end):
            at = start.end()
            if code[at - 2 : at] == "#[":
                at = closing(code, at - 1)
                continue
            if at >= end:
                break
            if kind[1] == "enum":
                yield at
                stop = re.compile(r"[,{(\[]")
                while (mark := stop.search(code, at, end)) and mark[0] != ",":
                    at = closing(code, mark.start())
                at = mark.end() if mark else end
            else:
                if re.compile(ITEM).match(code, at):
                    yield at
                at = end_of_item(code, at)


def share(flags):
    return f"{100 * sum(flags) / len(flags):.0f} %" if flags else "-"


def production(folder):
    """The masked code of each file below `folder` that is not for tests alone, by path."""
    code, tests = {}, []
    for path in sorted(folder.rglob("*.rs")):
        if path.name == "tests.rs" or "tests" in path.relative_to(folder).parts[:-1]:
            continue
        masked = mask(path.read_text(encoding="utf-8"))
        if not re.search(r"#!\[cfg\((?:all\()?test\b", masked):
            code[path], more = cut_tests(masked, path)
            tests += more
    names = lambda path: [path.with_suffix(""), *path.parents]
    return {path: text for path, text in code.items() if not set(tests) & set(names(path))}


def row(name, folder):
    code = production(folder).values()
    per_file = sorted(filter(None, map(lines, code)))
    per_function = sorted(size for text in code for size in functions(text))
    p90 = lambda sizes: sizes[math.ceil(0.9 * len(sizes)) - 1]
    documented = {
        which: [has_docs(text, at) for text in code for at in items(text, pattern)]
        for which, pattern in (("pub", r"pub"), ("crate", r"pub\(crate\)"))
    }
    which = "pub" if documented["pub"] else "crate"
    of = f"{len(documented[which]):,}" + ("" if which == "pub" else " `pub(crate)`")
    print(
        f"| {name} | {len(per_file)} | {sum(per_file):,} "
        f"| {statistics.median(per_file):.0f} / {p90(per_file):,} "
        f"| {len(per_function):,} | {statistics.median(per_function):.0f} / {p90(per_function)} "
        f"| {share(documented[which])} of {of} |"
    )


def main():
    print("| | files | lines | per file | functions | per function | public items documented |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for argument in sys.argv[1:] or OWN:
        name, folder = argument.split("=", 1)
        if not (folder := Path(folder)).is_dir():
            sys.exit(f"figures.py: {folder} is not a folder")
        row(name, folder)


if __name__ == "__main__":
    main()
