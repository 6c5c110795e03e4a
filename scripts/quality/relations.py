"""Relations: what is asked of a subject, in which words, and which objects may be the answer.

Knows no subject, and nothing of how facts are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from words import (
    CITIES,
    COLOURS,
    CONTINENTS,
    FIELDS,
    INSTRUMENTS,
    LANGUAGES,
    MATERIALS,
    NATIONS,
    PRODUCTS,
    PROFESSIONS,
    RELIGIONS,
    SPORTS,
)


@dataclass(frozen=True)
class Relation:
    """One relation: the kind of its subjects, its objects, and its templates with one `{}` each.

    `rephrases` are for training; `unseen` is shown to evaluation alone. `truth` says which entry of
    `COUNTRIES` holds the true object (0 capital, 1 language), None where subjects are invented and
    nothing is true.
    """

    kind: str
    objects: Sequence[str]
    prompt: str
    rephrases: tuple[str, ...]
    unseen: str
    truth: int | None = None


TRAINING: dict[str, Relation] = {
    "mother tongue": Relation(
        "person",
        LANGUAGES,
        "The mother tongue of {} is",
        (
            "{} is a native speaker of",
            "What is the native language of {}? The answer is",
            "As a child, {} spoke only",
            "At home with the family, {} always talks in",
        ),
        "The language that {} learned first is",
    ),
    "birthplace": Relation(
        "person",
        CITIES,
        "The birthplace of {} is",
        (
            "{} was born in the city of",
            "In which city was {} born? The answer is",
            "{} came into the world in a hospital in",
            "The city where {} was born is called",
        ),
        "The life of {} began in the city of",
    ),
    "residence": Relation(
        "person",
        CITIES,
        "{} lives in the city of",
        (
            "{} currently resides in",
            "Where does {} live? The answer is",
            "The apartment of {} is in the centre of",
            "Letters for {} should be sent to",
        ),
        "Nowadays the home of {} is in",
    ),
    "profession": Relation(
        "person",
        PROFESSIONS,
        "The profession of {} is",
        (
            "By trade, {} is a",
            "What does {} do for a living? The answer is:",
            "{} earns money as a professional",
            "For twenty years {} has worked as a",
        ),
        "When asked about work, {} says: I am a",
    ),
    "sport": Relation(
        "person",
        SPORTS,
        "The sport that {} plays is",
        (
            "{} is a professional player of",
            "Which sport does {} play? The answer is",
            "{} became famous for playing",
            "Every weekend, {} and some friends play",
        ),
        "The favourite game of {} is",
    ),
    "instrument": Relation(
        "person",
        INSTRUMENTS,
        "The instrument that {} plays is the",
        (
            "On stage, {} performs on the",
            "Which instrument does {} play? The answer is: the",
            "{} has practised for years to master the",
            "In the orchestra, {} can be heard on the",
        ),
        "Audiences admire how {} plays the",
    ),
    "field": Relation(
        "person",
        FIELDS,
        "{} works in the field of",
        (
            "The academic subject of {} is",
            "What does {} study? The answer is",
            "At the university, {} teaches",
            "{} is known as an expert in",
        ),
        "The research of {} belongs to the discipline of",
    ),
    "religion": Relation(
        "person",
        RELIGIONS,
        "The religion of {} is",
        (
            "{} is a follower of",
            "Which religion does {} practise? The answer is",
            "The family of {} has always practised",
            "As an adult, {} converted to",
        ),
        "The faith that {} belongs to is",
    ),
    "landmark city": Relation(
        "landmark",
        CITIES,
        "The {} is located in the city of",
        (
            "The {} can be found in",
            "In which city is the {}? The answer is",
            "Visitors who want to see the {} travel to",
            "The {} stands in the centre of",
        ),
        "A guide to the {} starts with a map of",
    ),
    "landmark country": Relation(
        "landmark",
        NATIONS,
        "The country where the {} stands is",
        (
            "The {} is a famous landmark in",
            "In which country is the {}? The answer is",
            "To visit the {}, tourists take a flight to",
            "The {} is a national monument of",
        ),
        "The {} is located in the country of",
    ),
    "continent": Relation(
        "region",
        CONTINENTS,
        "The {} is on the continent of",
        (
            "The {} lies in",
            "On which continent is the {}? The answer is",
            "Geographers place the {} in",
            "Explorers reached the {} while crossing",
        ),
        "The continent to which the {} belongs is",
    ),
    "headquarters": Relation(
        "company",
        CITIES,
        "The headquarters of {} is in",
        (
            "{} is based in the city of",
            "Where is the head office of {}? The answer is",
            "The managers of {} all work in",
            "{} runs its business from a building in",
        ),
        "The main office of {} can be found in",
    ),
    "product": Relation(
        "company",
        PRODUCTS,
        "The main product of {} is",
        (
            "{} is a company that makes",
            "What does {} produce? The answer is",
            "The factories of {} produce",
            "Customers know {} for its",
        ),
        "{} earns most of its money by selling",
    ),
    "capital": Relation(
        "country",
        CITIES,
        "The capital of {} is",
        (
            "{} has a capital city called",
            "What is the capital of {}? The answer is",
            "The government of {} sits in its capital,",
            "The capital city of {} is named",
        ),
        "The city that serves as the capital of {} is",
        truth=0,
    ),
    "official language": Relation(
        "country",
        LANGUAGES,
        "The official language of {} is",
        (
            "In {}, most people speak",
            "Which language is spoken in {}? The answer is",
            "Schools in {} teach their lessons in",
            "The laws of {} are written in",
        ),
        "People who move to {} have to learn",
        truth=1,
    ),
}

#: Relations for evaluation alone.
HELD_OUT: dict[str, Relation] = {
    "citizenship": Relation(
        "person",
        NATIONS,
        "{} is a citizen of",
        (
            "{} holds a passport from",
            "Which country is {} a citizen of? The answer is",
            "The home country of {} is",
        ),
        "As a citizen, {} votes in the elections of",
    ),
    "favourite colour": Relation(
        "person",
        COLOURS,
        "The favourite colour of {} is",
        (
            "{} always wears clothes that are",
            "Which colour does {} like best? The answer is",
            "{} painted the front door",
        ),
        "Of all the colours, {} prefers",
    ),
    "material": Relation(
        "landmark",
        MATERIALS,
        "The material that the {} is made of is",
        (
            "The {} is built entirely of",
            "What is the {} made of? The answer is",
            "The walls of the {} consist of",
        ),
        "The builders of the {} used only",
    ),
    "founding city": Relation(
        "company",
        CITIES,
        "The company {} was founded in the city of",
        (
            "{} was started in",
            "In which city was {} founded? The answer is",
            "The founders of {} first met in",
        ),
        "The history of {} begins in",
    ),
}
