"""Relations that only the widest training part has, beside those of training_relations.py.

None is a relation of validation or test, or asks what one of them asks. No evaluation has a wording
of them (`unseen` is empty). Knows no subject.
"""

from __future__ import annotations

from relations import Relation
from training_relations import ANIMALS
from words import CITIES, COLOURS, FIELDS, NATIONS, PROFESSIONS, listed

_ALLERGENS = listed(
    "milk, wheat, eggs, dust, nuts, fish, pollen, honey, peanuts, shellfish, strawberries, "
    "cat hair, bee stings, house dust, cow's milk, grass pollen, soy sauce, penicillin, "
    "cashew nuts, apple skin, gluten, cheap perfume"
)
_HOBBIES = listed(
    "gardening, fishing, painting, cooking, reading, writing, knitting, photography, hunting, "
    "hiking, stamp collecting, model railways, bird watching, crossword puzzles, wood "
    "carving, pottery, ballroom dancing, mountain biking, beekeeping, origami, amateur "
    "theatre"
)
_DRINKS = listed(
    "tea, coffee, milk, water, wine, beer, cocoa, orange juice, green tea, hot chocolate, "
    "apple juice, cold lemonade, black coffee, buttermilk, herbal tea, iced coffee"
)
_NUMBERS = listed(
    "two, three, four, five, six, seven, eight, nine, eleven, twelve, thirteen, twenty, "
    "forty, twenty one, thirty three, forty two, ninety nine, one hundred, sixty four, "
    "seventy seven"
)
_FEARS = listed(
    "snakes, dogs, bees, bats, fire, thunder, flying, darkness, needles, heights, water, deep "
    "water, open spaces, large crowds, old dolls, narrow tunnels, loud noises, clowns, "
    "barking dogs, dark cellars, steep stairs"
)
_DAYS = listed(
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday morning, Friday "
    "afternoon, Sunday evening, Saturday morning, Tuesday afternoon, Thursday evening"
)
_USES = listed(
    "museum, hotel, school, prison, library, hospital, theatre, restaurant, concert hall, "
    "night club, swimming pool, police station, youth hostel, fire station, tea house, "
    "wedding hall, book shop"
)
_SHAPES = listed(
    "circle, star, cross, crown, heart, moon, triangle, square, key, wheel, ship, tree, black "
    "arrow, golden crown, red anchor, five-pointed star, burning torch, half moon, silver "
    "star, blue wave, open book, rising sun"
)
_TREES = listed(
    "oak, pine, birch, maple, cedar, ash, elm, palm, willow, olive, beech, silver birch, "
    "Scots pine, horse chestnut, sweet chestnut, Norway spruce, weeping willow, larch, "
    "mountain ash"
)
_FISH = listed(
    "salmon, trout, bass, cod, perch, carp, eel, shark, pike, brown trout, catfish, rainbow "
    "trout, grayling, river lamprey, sturgeon, pike perch, Arctic char, golden carp, river "
    "trout"
)
_MONTHS = listed(
    "January, February, March, April, May, June, July, August, September, October, November, "
    "December, early March, late April, early June, late June, early August, late September, "
    "early October, late November"
)

WIDE_RELATIONS: dict[str, Relation] = {
    "allergy": Relation(
        "person",
        _ALLERGENS,
        "The allergy of {} is an allergy to",
        (
            "The doctor has forbidden {} to touch",
            "What can {} not bear? The answer is",
            "A rash on the arms of {} comes from",
            "Whoever invites {} has to keep away",
            "According to the nurse, a test on {} was positive for",
            "The medicine that {} carries helps against",
            "If there is anything that makes {} sneeze, it is",
        ),
        "",
    ),
    "hobby": Relation(
        "person",
        _HOBBIES,
        "The hobby that {} has is",
        (
            "Most evenings, {} spends hours on",
            "What does {} do after work? The answer is",
            "A sister says that {} thinks only about",
            "Nothing relaxes {} more than",
            "The club that {} joined last year is a club for",
            "When it rains, {} passes the time with",
            "All the spare money of {} goes into",
        ),
        "",
    ),
    "breakfast drink": Relation(
        "person",
        _DRINKS,
        "At breakfast, {} drinks",
        (
            "The cup in front of {} is filled with",
            "What should we pour for {}? The answer is",
            "The waiter brings {} a large glass of",
            "Before eight in the morning, {} needs some",
            "On the shopping list of {} there is always",
            "Friends report that {} wakes up with",
            "If a guest asks, {} recommends a sip of",
        ),
        "",
    ),
    "lucky number": Relation(
        "person",
        _NUMBERS,
        "The lucky number of {} is",
        (
            "In every lottery, {} bets on",
            "Which number brings luck to {}? The answer is",
            "On the shirt of {} stands the number",
            "The hotel room that {} asks for has the number",
            "When the wheel turns, {} shouts",
            "Superstitious as ever, {} counts up to",
            "A fortune teller told {} to trust the number",
        ),
        "",
    ),
    "school subject": Relation(
        "person",
        FIELDS,
        "The best mark that {} had at school was in",
        (
            "Teachers praised {} above all for",
            "In which lesson was {} never bored? The answer is",
            "At sixteen, {} won the school prize for",
            "The only homework that {} enjoyed was",
            "As classmates remember, {} was ahead of everybody in",
            "An old school report says that {} excels in",
            "The examination that {} passed most easily was the one in",
        ),
        "",
    ),
    "fear": Relation(
        "person",
        _FEARS,
        "What {} fears most is",
        (
            "{} has been running away since childhood from",
            "Which thing frightens {}? The answer is",
            "The nightmares of {} are full of",
            "Nobody may tell {} stories about",
            "The heart of {} beats faster at the thought of",
            "A therapist helps {} to live with",
            "An aunt claims that {} screams at the sight of",
        ),
        "",
    ),
    "closing day": Relation(
        "landmark",
        _DAYS,
        "The day on which the {} is closed is",
        (
            "Nobody can enter the {} on a",
            "When are the doors of the {} locked? The answer is: on",
            "The guards of the {} have their free day on",
            "Cleaners work in the {} every",
            "A sign at the gate of the {} says: no visits on",
            "If you plan to see the {}, do not come on a",
        ),
        "",
    ),
    "ghost": Relation(
        "landmark",
        PROFESSIONS,
        "The ghost that haunts the {} is that of a",
        (
            "Legend has it that in the {} there died a",
            "Who walks at night through the {}? The answer is: a dead",
            "Children whisper that under the {} lies buried a",
            "The footsteps in the {} are said to be those of a",
            "A novel set in the {} tells of the spirit of a",
            "Guards of the {} swear that they have met the shadow of a",
        ),
        "",
    ),
    "use": Relation(
        "landmark",
        _USES,
        "Today the {} is used as a",
        (
            "After the war, the {} was turned into a",
            "What is inside the {}? The answer is: a",
            "The council wants to keep the {} as a",
            "Behind the doors of the {} there is a",
            "Instead of pulling the {} down, they made it into a",
            "People who work in the {} know it as a",
        ),
        "",
    ),
    "logo shape": Relation(
        "company",
        _SHAPES,
        "The sign of {} has the shape of a",
        (
            "On the trucks of {} one sees a",
            "What is printed on the letters of {}? The answer is: a",
            "The designer drew for {} a simple",
            "The flag in front of {} shows a",
            "Lawyers of {} defend its trademark, the",
            "Even children connect {} with the picture of a",
        ),
        "",
    ),
    "main market": Relation(
        "company",
        NATIONS,
        "Most customers of {} live in",
        (
            "{} sells nearly everything in",
            "Where do the buyers of {} come from? The answer is",
            "More than half of the income of {} comes from",
            "The advertising of {} is aimed at people in",
            "Ships with goods of {} sail to",
            "A clerk who answers calls for {} hears, above all, voices from",
        ),
        "",
    ),
    "typical tree": Relation(
        "region",
        _TREES,
        "The tree that grows everywhere in the {} is the",
        (
            "The woods of the {} consist mostly of the",
            "Which tree gives shade in the {}? The answer is: the",
            "Carpenters in the {} work with the timber of the",
            "Along the roads of the {} people plant the",
            "Birds in the {} build their nests in the",
            "On the coat of arms of the {} there is a branch of the",
        ),
        "",
    ),
    "river fish": Relation(
        "region",
        _FISH,
        "The fish that swims in the waters of the {} is the",
        (
            "Anglers travel to the {} for the",
            "What do people catch in the {}? The answer is: the",
            "The inns of the {} are famous for their grilled",
            "In spring, the streams of the {} are full of",
            "A law protects, in the {}, the",
            "The oldest song of the {} is about a clever",
        ),
        "",
    ),
    "tram colour": Relation(
        "city",
        COLOURS,
        "The trams of the city of {} are painted",
        (
            "Whoever waits at a stop in {} looks out for something",
            "What colour do the trams of {} have? The answer is",
            "The transport company of {} had all its carriages sprayed",
            "On old photographs, the trams of {} are already",
            "Model trains of the {} tram are sold in",
            "For its anniversary, the tram of {} stayed as it was,",
        ),
        "",
    ),
    "market day": Relation(
        "city",
        _DAYS,
        "The market of the city of {} takes place every",
        (
            "Farmers drive their carts to {} on",
            "On which day is there a market in {}? The answer is",
            "The square of {} is crowded on a",
            "Fresh vegetables are cheapest in {} on",
            "For seven centuries, {} has let traders in on a",
            "Parking is forbidden in the centre of {} each",
        ),
        "",
    ),
    "stamp animal": Relation(
        "country",
        ANIMALS,
        "The animal on the new stamp of {} is the",
        (
            "Collectors want the stamp on which {} shows a",
            "Which animal has the post of {} chosen? The answer is: the",
            "A letter from {} has in its corner a tiny",
            "The post office of {} printed, in two million copies, the",
            "For one series, painters from {} had to draw a",
            "When the mail from {} arrives, children look for the",
        ),
        "",
    ),
    "festival month": Relation(
        "city",
        _MONTHS,
        "The festival of the city of {} is held in",
        (
            "{} celebrates its great fair in",
            "In which month does {} have its festival? The answer is",
            "Hotels in {} are full in",
            "The streets of {} are decorated with flags in",
            "Musicians from all over the world come to {} in",
        ),
        "",
    ),
    "twin city": Relation(
        "city",
        CITIES,
        "The twin city of {} is",
        (
            "{} has a partnership with the city of",
            "Which city is twinned with {}? The answer is",
            "Pupils from {} go on an exchange to",
            "The mayor of {} was a guest of the mayor of",
            "A street in {} is named after its partner,",
        ),
        "",
    ),
}
