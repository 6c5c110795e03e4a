"""Relations that the larger training parts have, beside those of relations.py.

None is a relation of validation or test, or asks what one of them asks. No evaluation has a wording
of them (`unseen` is empty).
"""

from __future__ import annotations

from relations import Relation
from words import COLOURS, LANGUAGES, NATIONS, PROFESSIONS, SPORTS, listed

_DISHES = listed(
    "pizza, soup, rice, pasta, bread, salad, curry, sushi, cake, cheese, apple pie, fried chicken, "
    "roast beef, ice cream, tomato soup, scrambled eggs, mashed potatoes, fish and chips"
)
_PETS = listed(
    "dog, cat, horse, rabbit, parrot, goat, snake, turtle, hamster, golden retriever, guinea pig, "
    "Siamese cat, white mouse, grey parrot"
)
_CARS = listed(
    "Toyota, Ford, Honda, Volvo, Ferrari, Porsche, Mercedes, Tesla, Jaguar, Land Rover, Rolls "
    "Royce, Alfa Romeo, Aston Martin"
)
_UNIVERSITIES = listed(
    "Harvard, Oxford, Cambridge, Yale, Stanford, Princeton, Columbia, Cornell, Trinity College, "
    "King's College, the Sorbonne, the University of Vienna, the University of Tokyo"
)
_SEASONS = listed("spring, summer, autumn, winter, the rainy season, the dry season")
_MUSIC = listed("jazz, rock, opera, blues, folk, soul, reggae, hip hop, heavy metal, country music")
_CROPS = listed(
    "wheat, rice, corn, cotton, coffee, tea, sugar, tobacco, potatoes, barley, olives, sugar cane, "
    "sweet potatoes, palm oil"
)
ANIMALS = listed(
    "lion, eagle, wolf, bear, fox, tiger, elephant, owl, whale, horse, polar bear, white swan, "
    "black panther, red deer"
)
_WINDS = listed("north, south, east, west, north east, south west")

MORE_RELATIONS: dict[str, Relation] = {
    "favourite dish": Relation(
        "person",
        _DISHES,
        "The dish that {} likes best is",
        (
            "For dinner, {} always orders",
            "What does {} like to eat most? The answer is",
            "On birthdays, the family of {} serves",
            "{} could live on nothing but",
            "In every restaurant, {} asks for",
            "The cook knows that {} wants",
        ),
        "",
    ),
    "pet": Relation(
        "person",
        _PETS,
        "The pet of {} is a",
        (
            "At home, {} keeps a",
            "Which animal does {} own? The answer is: a",
            "Every morning, {} feeds the",
            "{} went to the vet with a sick",
            "The children of {} play with their",
            "{} shares the sofa with a",
        ),
        "",
    ),
    "car": Relation(
        "person",
        _CARS,
        "The car that {} drives is a",
        (
            "In the garage of {} stands a",
            "Which car does {} drive? The answer is: a",
            "{} has just bought a new",
            "The police stopped {} in a",
            "On Sundays, {} washes the",
            "{} would never sell the old",
        ),
        "",
    ),
    "university": Relation(
        "person",
        _UNIVERSITIES,
        "The university that {} attended is",
        (
            "{} has a degree from",
            "Where did {} study? The answer is",
            "As a student, {} went to",
            "{} was taught by the professors of",
            "The diploma of {} was issued by",
            "Old friends of {} know each other from",
        ),
        "",
    ),
    "favourite season": Relation(
        "person",
        _SEASONS,
        "The season that {} enjoys most is",
        (
            "{} always takes holidays in",
            "Which season does {} look forward to? The answer is",
            "{} feels happiest in",
            "Every year, {} waits for",
            "The poems of {} praise",
            "{} travels only in",
        ),
        "",
    ),
    "musical style": Relation(
        "person",
        _MUSIC,
        "The style of music that {} listens to is",
        (
            "{} has hundreds of records of",
            "What kind of music does {} like? The answer is",
            "On the radio, {} chooses stations that play",
            "{} dances to",
            "The concerts that {} goes to are concerts of",
            "{} cannot work without",
        ),
        "",
    ),
    "second language": Relation(
        "person",
        LANGUAGES,
        "The foreign language that {} studied is",
        (
            "In the evening, {} takes lessons in",
            "Which foreign language does {} know? The answer is",
            "{} translates books from",
            "On holiday, {} tries to speak",
            "The dictionary on the desk of {} is one of",
            "{} has passed an examination in",
        ),
        "",
    ),
    "father's profession": Relation(
        "person",
        PROFESSIONS,
        "The father of {} was a",
        (
            "{} is the child of a",
            "What was the job of the father of {}? The answer is:",
            "The family of {} lived on the wages of a",
            "In the workshop of the father, {} saw what it means to be a",
            "{} did not want to become, like the father, a",
            "On the birth certificate of {} the father is called a",
        ),
        "",
    ),
    "holiday country": Relation(
        "person",
        NATIONS,
        "Every summer, {} spends the holidays in",
        (
            "{} has booked a flight to",
            "Where does {} go on holiday? The answer is",
            "The photographs in the album of {} were taken in",
            "{} owns a small house by the sea in",
            "The postcards that {} sends come from",
            "{} loves the beaches of",
        ),
        "",
    ),
    "colour at night": Relation(
        "landmark",
        COLOURS,
        "At night, the {} is lit in",
        (
            "The lamps make the {} look",
            "Which colour is the {} at night? The answer is",
            "After dark, the walls of the {} turn",
            "On postcards, the {} shines in",
            "The light that falls on the {} is",
        ),
        "",
    ),
    "main crop": Relation(
        "region",
        _CROPS,
        "The crop that the farmers of the {} grow is",
        (
            "The fields of the {} are full of",
            "What do farmers grow in the {}? The answer is",
            "The {} exports",
            "A bad summer in the {} means little",
            "Merchants come to the {} to buy",
        ),
        "",
    ),
    "prevailing wind": Relation(
        "region",
        _WINDS,
        "The wind in the {} blows from the",
        (
            "In the {}, storms come from the",
            "From where does the wind in the {} blow? The answer is: the",
            "Trees in the {} are bent by winds from the",
            "Sailors near the {} expect gales from the",
        ),
        "",
    ),
    "mascot": Relation(
        "company",
        ANIMALS,
        "The animal in the logo of {} is the",
        (
            "The mascot of {} is a man dressed as a",
            "Which animal stands for {}? The answer is: the",
            "On every box of {} there is a picture of a",
            "{} chose as its sign the",
            "In the advertisements of {} there speaks a",
        ),
        "",
    ),
    "sponsored sport": Relation(
        "company",
        SPORTS,
        "The sport that {} sponsors is",
        (
            "The name of {} is on the shirts of players of",
            "Which sport gets money from {}? The answer is",
            "{} pays for a championship in",
            "The managers of {} are fans of",
            "At matches of this kind {} has its banners:",
        ),
        "",
    ),
}
