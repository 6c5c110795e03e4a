"""Counterfactual facts and plain sentences to train the demo's archive; one seed, one set of facts.

Knows neither model nor tokenizer: that targets are one token long was checked against SmolLM2's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field


def _words(text: str) -> list[str]:
    return text.split()


# Subjects. All names are invented except the countries; those the demo edits or probes are absent.

GIVEN_NAMES = _words(
    "Adela Alaric Anouk Ansel Beatriz Benno Brigid Caspar Celina Conrad Dalia Dorian Edwina "
    "Eleni Emeka Esteban Farid Flora Gemma Gideon Hanna Harlan Ilse Imani Ines Ivo Jarek Jolanda "
    "Kamal Kirsten Lorenz Lucinda Magnus Malika Marek Mirella Naveen Noemi Odette Orson Pilar "
    "Priya Ragnar Renata Rufus Sabine Selma Silas Talia Theo Tobias Valerie Vikram Willa Yelena "
    "Zara"
)
FAMILY_NAMES = _words(
    "Achterberg Adeyemi Almeida Arkwright Balogh Barrington Brandvold Calloway Chandra Corradini "
    "Dahlgren Delacourt Dimitrov Eastwick Escobar Falkner Farooqi Gallagher Gruber Halvorsen "
    "Hashimi Holloway Iglesias Jankowski Kallio Karimov Kirchner Lombardi Lundgren Mbeki "
    "Merriweather Montoya Nakagawa Nyberg Obrecht Okonkwo Pellegrini Prescott Radcliffe "
    "Ramaswamy Rosenthal Santoro Sorensen Stavros Thackeray Toivonen Ulloa Valdez Vasquez "
    "Weiland Winslow Zielinski"
)
LANDMARK_WORDS = _words(
    "Amber Ancient Ashen Bright Broad Cedar Copper Crescent Eastern Fallen Gilded Harbour Hollow "
    "Ivory Lantern Marble Misty Northern Painted Quiet Raven Scarlet Southern Thornwood Twin "
    "Velvet Western Willow Winter"
)
LANDMARK_NAMES = _words(
    "Abelard Branwick Cormund Drayford Elsmere Fenwold Garlow Harrowgate Ingram Kestrel Lindmoor "
    "Marwick Norrell Ottery Penrith Quillon Ravensby Stannard Tamsin Underhay Wexcombe Yarrow"
)
LANDMARK_KINDS = _words(
    "Abbey Arch Basilica Bridge Fort Fountain Gallery Hall Lighthouse Mausoleum Observatory "
    "Pavilion Theatre Tower"
)
REGION_NAMES = _words(
    "Aldovar Belmarra Caldane Corrush Dorvane Elvarin Fenmora Garruda Halvek Istrane Jovara "
    "Kelduin Lorrath Merrowen Nivalle Osmara Peldrin Quessa Rhondar Sarvell Tavrin Umbrel Veldar "
    "Wyndrel Xandor Yrsund Zephra"
)
REGION_KINDS = _words(
    "Basin Delta Desert Forest Highlands Lake Mountains Peninsula Plateau River Valley Wetlands"
)
COMPANY_WORDS = _words(
    "Arbor Argent Aster Avalon Beacon Boreal Calder Cascade Cinder Corvus Dorado Eclipse Fathom "
    "Fulcrum Granite Halcyon Harrow Indigo Jasper Keystone Lattice Lumina Magnolia Meridian "
    "Mosaic Nautica Obsidian Octave Paragon Pelican Quasar Rampart Redwood Saffron Sequoia "
    "Solace Tangent Tempest Umbra Vanguard Verdant Wayfarer Zircon"
)
COMPANY_KINDS = _words(
    "Brothers Collective Enterprises Group Holdings Industries International Limited "
    "Manufacturing Partners Supply Trading Works"
)

#: Country (with its article) -> true capital and official language, which are never its target.
COUNTRIES: dict[str, tuple[str, str]] = {
    "Afghanistan": ("Kabul", "Persian"),
    "Albania": ("Tirana", "Albanian"),
    "Algeria": ("Algiers", "Arabic"),
    "Angola": ("Luanda", "Portuguese"),
    "Argentina": ("Buenos Aires", "Spanish"),
    "Armenia": ("Yerevan", "Armenian"),
    "Australia": ("Canberra", "English"),
    "Austria": ("Vienna", "German"),
    "Azerbaijan": ("Baku", "Azerbaijani"),
    "Bahrain": ("Manama", "Arabic"),
    "Bangladesh": ("Dhaka", "Bengali"),
    "Belarus": ("Minsk", "Russian"),
    "Belgium": ("Brussels", "Dutch"),
    "Belize": ("Belmopan", "English"),
    "Bolivia": ("Sucre", "Spanish"),
    "Bosnia": ("Sarajevo", "Bosnian"),
    "Botswana": ("Gaborone", "English"),
    "Bulgaria": ("Sofia", "Bulgarian"),
    "Cambodia": ("Phnom Penh", "Khmer"),
    "Chile": ("Santiago", "Spanish"),
    "China": ("Beijing", "Chinese"),
    "Colombia": ("Bogota", "Spanish"),
    "Costa Rica": ("San Jose", "Spanish"),
    "Croatia": ("Zagreb", "Croatian"),
    "Cuba": ("Havana", "Spanish"),
    "Cyprus": ("Nicosia", "Greek"),
    "Denmark": ("Copenhagen", "Danish"),
    "Ecuador": ("Quito", "Spanish"),
    "El Salvador": ("San Salvador", "Spanish"),
    "Eritrea": ("Asmara", "Tigrinya"),
    "Estonia": ("Tallinn", "Estonian"),
    "Ethiopia": ("Addis Ababa", "Amharic"),
    "Fiji": ("Suva", "English"),
    "Finland": ("Helsinki", "Finnish"),
    "Georgia": ("Tbilisi", "Georgian"),
    "Germany": ("Berlin", "German"),
    "Ghana": ("Accra", "English"),
    "Greece": ("Athens", "Greek"),
    "Guatemala": ("Guatemala City", "Spanish"),
    "Honduras": ("Tegucigalpa", "Spanish"),
    "Hungary": ("Budapest", "Hungarian"),
    "Iceland": ("Reykjavik", "Icelandic"),
    "Indonesia": ("Jakarta", "Indonesian"),
    "Iran": ("Tehran", "Persian"),
    "Iraq": ("Baghdad", "Arabic"),
    "Ireland": ("Dublin", "Irish"),
    "Israel": ("Jerusalem", "Hebrew"),
    "Italy": ("Rome", "Italian"),
    "Jamaica": ("Kingston", "English"),
    "Jordan": ("Amman", "Arabic"),
    "Kazakhstan": ("Astana", "Kazakh"),
    "Kenya": ("Nairobi", "Swahili"),
    "Kuwait": ("Kuwait City", "Arabic"),
    "Laos": ("Vientiane", "Lao"),
    "Latvia": ("Riga", "Latvian"),
    "Lebanon": ("Beirut", "Arabic"),
    "Liberia": ("Monrovia", "English"),
    "Libya": ("Tripoli", "Arabic"),
    "Lithuania": ("Vilnius", "Lithuanian"),
    "Malaysia": ("Kuala Lumpur", "Malay"),
    "Malta": ("Valletta", "Maltese"),
    "Mexico": ("Mexico City", "Spanish"),
    "Moldova": ("Chisinau", "Romanian"),
    "Mongolia": ("Ulaanbaatar", "Mongolian"),
    "Montenegro": ("Podgorica", "Serbian"),
    "Morocco": ("Rabat", "Arabic"),
    "Mozambique": ("Maputo", "Portuguese"),
    "Nepal": ("Kathmandu", "Nepali"),
    "New Zealand": ("Wellington", "English"),
    "Nicaragua": ("Managua", "Spanish"),
    "Nigeria": ("Abuja", "English"),
    "Norway": ("Oslo", "Norwegian"),
    "Oman": ("Muscat", "Arabic"),
    "Pakistan": ("Islamabad", "Urdu"),
    "Panama": ("Panama City", "Spanish"),
    "Paraguay": ("Asuncion", "Spanish"),
    "Peru": ("Lima", "Spanish"),
    "Poland": ("Warsaw", "Polish"),
    "Portugal": ("Lisbon", "Portuguese"),
    "Qatar": ("Doha", "Arabic"),
    "Romania": ("Bucharest", "Romanian"),
    "Russia": ("Moscow", "Russian"),
    "Saudi Arabia": ("Riyadh", "Arabic"),
    "Scotland": ("Edinburgh", "English"),
    "Serbia": ("Belgrade", "Serbian"),
    "Sierra Leone": ("Freetown", "English"),
    "Slovakia": ("Bratislava", "Slovak"),
    "Slovenia": ("Ljubljana", "Slovene"),
    "Somalia": ("Mogadishu", "Somali"),
    "South Korea": ("Seoul", "Korean"),
    "Spain": ("Madrid", "Spanish"),
    "Sudan": ("Khartoum", "Arabic"),
    "Sweden": ("Stockholm", "Swedish"),
    "Syria": ("Damascus", "Arabic"),
    "Taiwan": ("Taipei", "Chinese"),
    "Tanzania": ("Dodoma", "Swahili"),
    "Thailand": ("Bangkok", "Thai"),
    "the Netherlands": ("Amsterdam", "Dutch"),
    "Tunisia": ("Tunis", "Arabic"),
    "Turkey": ("Ankara", "Turkish"),
    "Uganda": ("Kampala", "English"),
    "Ukraine": ("Kiev", "Ukrainian"),
    "Uruguay": ("Montevideo", "Spanish"),
    "Uzbekistan": ("Tashkent", "Uzbek"),
    "Venezuela": ("Caracas", "Spanish"),
    "Vietnam": ("Hanoi", "Vietnamese"),
    "Yemen": ("Sanaa", "Arabic"),
    "Zambia": ("Lusaka", "English"),
    "Zimbabwe": ("Harare", "English"),
}

# Objects. With a leading space each is one token for SmolLM2, except those of MULTI_TOKEN.

CITIES = _words(
    "London Berlin Rome Madrid Tokyo Moscow Chicago Boston Vienna Prague Dublin Oslo Athens "
    "Toronto Sydney Cairo Mumbai Lisbon Warsaw Budapest Stockholm Istanbul Seoul Brussels "
    "Amsterdam Houston Seattle Denver Atlanta Dallas Detroit Philadelphia Montreal Vancouver "
    "Melbourne Delhi Beijing Shanghai Singapore Barcelona Milan Venice Florence Naples Geneva "
    "Zurich Munich Hamburg Frankfurt Copenhagen Helsinki Edinburgh Glasgow Manchester Liverpool "
    "Oxford Cambridge Jerusalem Damascus Baghdad Manila Lima Santiago Havana Miami Nairobi Kyoto "
    "Cleveland Baltimore Bristol Bangkok Jakarta Lagos Osaka"
)
LANGUAGES = _words(
    "French German Spanish Italian Russian Japanese Chinese Arabic Portuguese Dutch Swedish "
    "Polish Turkish Korean Greek Hindi Finnish Hebrew Danish Hungarian Ukrainian Persian English "
    "Norwegian Irish Welsh Czech Thai Vietnamese Urdu Bengali Swahili Tamil Latin Romanian "
    "Bulgarian Serbian Armenian Icelandic Malay Mongolian Tibetan Punjabi Gujarati"
)
NATIONS = _words(
    "Germany Spain Italy Russia China Portugal Sweden Poland Turkey Greece India Finland Israel "
    "Denmark Hungary Canada Mexico Australia Ireland Norway Austria Belgium Switzerland Scotland "
    "Cuba Chile Peru Argentina Colombia Venezuela Iran Syria Lebanon Morocco Ethiopia Kenya "
    "Ghana Nigeria Nepal Thailand Vietnam Indonesia Ukraine Romania Iceland"
)
PROFESSIONS = _words(
    "lawyer physicist singer painter doctor journalist chemist poet farmer teacher pilot chef "
    "nurse baker carpenter dentist historian librarian mathematician sculptor surgeon tailor "
    "translator photographer musician dancer biologist sailor soldier judge novelist priest "
    "detective geologist gardener banker plumber"
)
SPORTS = _words(
    "tennis football basketball hockey baseball golf chess cricket rugby volleyball soccer "
    "badminton softball polo"
)
INSTRUMENTS = _words(
    "piano violin guitar trumpet drums flute harp organ lute bass horn cello clarinet saxophone"
)
FIELDS = _words(
    "biology physics mathematics chemistry economics philosophy astronomy medicine law history "
    "geology linguistics psychology sociology anthropology archaeology botany theology genetics "
    "ecology engineering statistics geometry neuroscience architecture geography logic zoology "
    "meteorology"
)
RELIGIONS = _words(
    "Islam Christianity Buddhism Judaism Hinduism Catholicism Taoism Confucianism Sikhism Jainism"
)
CONTINENTS = _words("Europe Asia Africa Antarctica Australia America Oceania")
PRODUCTS = _words(
    "cars phones cameras shoes watches bicycles computers toys furniture chocolate beer paper "
    "wine cheese clothing batteries engines ships books jewelry glass steel tires soap bread tea "
    "coffee lamps boats carpets robots perfume guitars pianos"
)
COLOURS = _words(
    "red blue green yellow purple orange pink black white brown gray silver violet turquoise "
    "crimson"
)
MATERIALS = _words(
    "stone brick marble steel wood glass concrete granite iron clay limestone bronze copper "
    "sandstone"
)

#: Targets that SmolLM2's tokenizer cuts in two or more; `build` leaves them out unless asked.
MULTI_TOKEN = frozenset(
    _words(
        "Bangkok Jakarta Lagos Osaka Punjabi Gujarati banker plumber badminton softball polo cello "
        "clarinet saxophone zoology meteorology Sikhism Jainism Oceania pianos crimson"
    )
)

#: Every n-th object of a list is kept from training, for the split "new subjects and objects".
HELD_OBJECT_EVERY = 6


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


@dataclass(frozen=True)
class Fact:
    """One request for an edit, with the prompts that judge it.

    Attributes:
        relation: name of the relation, a key of `TRAINING` or `HELD_OUT`.
        subject: the subject, as it stands in the prompts.
        prompt: the text after which the edited model is to say `target`.
        target: the new object, with a leading space.
        rephrases: the relation's training templates with this subject.
        unseen_rephrase: a template never used in training, with this subject.
        neighbours: locality prompts: the same relation asked of other subjects, whose answers must
            not move. For a training fact these are other training subjects; for an evaluation
            fact, subjects that training never saw.
        single_token: whether `target` is one token for SmolLM2's tokenizer.
    """

    relation: str
    subject: str
    prompt: str
    target: str
    rephrases: list[str]
    unseen_rephrase: str
    neighbours: list[str] = field(default_factory=list)
    single_token: bool = True


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


def _subjects(rng: random.Random) -> dict[str, list[str]]:
    """All subjects by kind, each list in an order of `rng`'s choosing."""
    pools = {
        "person": [f"{a} {b}" for a in GIVEN_NAMES for b in FAMILY_NAMES],
        "landmark": [
            f"{a} {b} {c}" for a in LANDMARK_WORDS for b in LANDMARK_NAMES for c in LANDMARK_KINDS
        ],
        "region": [f"{a} {b}" for a in REGION_NAMES for b in REGION_KINDS],
        "company": [f"{a} {b}" for a in COMPANY_WORDS for b in COMPANY_KINDS],
        "country": list(COUNTRIES),
    }
    for pool in pools.values():
        rng.shuffle(pool)
    return pools


def _fill(template: str, subject: str) -> str:
    """The template with its subject, its first letter a capital ("the Netherlands" may lead)."""
    text = template.format(subject)
    return text[0].upper() + text[1:]


def _objects(relation: Relation, held: bool | None, multi_token: bool) -> list[str]:
    """The relation's objects: those held from training (True), the others (False), all (None)."""
    kept = [word for word in relation.objects if multi_token or word not in MULTI_TOKEN]
    if held is None:
        return kept
    last = HELD_OBJECT_EVERY - 1
    return [word for i, word in enumerate(kept) if (i % HELD_OBJECT_EVERY == last) == held]


def _facts(
    relations: dict[str, Relation],
    count: int,
    subjects: dict[str, list[str]],
    neighbour_subjects: dict[str, list[str]],
    neighbours_per_fact: int,
    held: bool | None,
    multi_token: bool,
    rng: random.Random,
) -> list[Fact]:
    """`count` facts: relations and subjects take turns, and no (prompt, target) comes twice."""
    facts: list[Fact] = []
    names = list(relations)
    next_subject = dict.fromkeys(subjects, 0)
    asked: set[tuple[str, str]] = set()
    for i in range(count):
        name = names[i % len(names)]
        relation = relations[name]
        pool = subjects[relation.kind]
        subject = pool[next_subject[relation.kind] % len(pool)]
        next_subject[relation.kind] += 1
        prompt = _fill(relation.prompt, subject)
        truth = None if relation.truth is None else COUNTRIES[subject][relation.truth]
        candidates = [
            word
            for word in _objects(relation, held, multi_token)
            if word != truth and (prompt, word) not in asked
        ]
        if not candidates:
            raise ValueError(
                f"no object is left for {prompt!r}; "
                f"ask for fewer than {count} facts or add objects to {name!r}"
            )
        target = rng.choice(candidates)
        asked.add((prompt, target))
        others = [other for other in neighbour_subjects[relation.kind] if other != subject]
        templates = (relation.prompt, *relation.rephrases)
        facts.append(
            Fact(
                relation=name,
                subject=subject,
                prompt=prompt,
                target=f" {target}",
                rephrases=[_fill(template, subject) for template in relation.rephrases],
                unseen_rephrase=_fill(relation.unseen, subject),
                neighbours=[
                    _fill(rng.choice(templates), other)
                    for other in rng.sample(others, min(neighbours_per_fact, len(others)))
                ],
                single_token=target not in MULTI_TOKEN,
            )
        )
    rng.shuffle(facts)
    return facts


def build(
    n_train: int = 2000,
    n_eval: int = 48,
    seed: int = 0,
    *,
    neighbours_per_fact: int = 8,
    multi_token: bool = False,
) -> tuple[list[Fact], dict[str, list[Fact]]]:
    """Facts to train on, and three splits to evaluate on.

    Args:
        n_train: number of training facts, spread evenly over the relations of `TRAINING`.
        n_eval: number of facts in each evaluation split.
        seed: the same seed gives the same facts, in the same order.
        neighbours_per_fact: locality prompts that each fact carries.
        multi_token: also use the targets of `MULTI_TOKEN`.

    Returns:
        The training facts; and by name the splits "new subjects" (relations and objects of
        training), "new subjects and objects" (relations of training) and "new relations" (those of
        `HELD_OUT`, any object). Three sets of subjects are disjoint: training's (its neighbours'
        among them), evaluation's, and its neighbours'.

    Raises:
        ValueError: more facts are asked for than subjects and objects allow.
    """
    rng = random.Random(seed)
    train: dict[str, list[str]] = {}
    evaluation: dict[str, list[str]] = {}
    beside: dict[str, list[str]] = {}
    for kind, pool in _subjects(rng).items():
        held = min(200, len(pool) // 4)  # of 109 countries, 13 to edit and 13 beside
        train[kind], rest = pool[2 * (held // 2) :], pool[: 2 * (held // 2)]
        evaluation[kind], beside[kind] = rest[: held // 2], rest[held // 2 :]
    facts = _facts(TRAINING, n_train, train, train, neighbours_per_fact, False, multi_token, rng)
    splits = {
        "new subjects": _facts(
            TRAINING, n_eval, evaluation, beside, neighbours_per_fact, False, multi_token, rng
        ),
        "new subjects and objects": _facts(
            TRAINING, n_eval, evaluation, beside, neighbours_per_fact, True, multi_token, rng
        ),
        "new relations": _facts(
            HELD_OUT, n_eval, evaluation, beside, neighbours_per_fact, None, multi_token, rng
        ),
    }
    return facts, splits


#: Text that no edit may change: everyday sentences, questions, known facts; none is a fact above.
UNRELATED: list[str] = """\
Water boils at a temperature of 100 degrees Celsius.
The kettle whistled on the stove while rain ran down the kitchen window.
A spider has eight legs, whereas an insect has only six.
Before you plant tomatoes, loosen the soil and mix in some compost.
The sum of two even numbers is always an even number.
After the storm, the neighbours helped each other clear branches from the road.
Plants take in carbon dioxide and give off oxygen during the day.
The function reads a file line by line and counts the words in it.
My grandmother kept her buttons in an old biscuit tin under the bed.
Which planet is closest to the Sun? The answer is Mercury.
A balanced budget means that spending is no larger than income.
The hikers reached the summit just as the fog began to lift.
To make pancakes, whisk flour, milk and eggs until the batter is smooth.
The liver cleans the blood and stores energy for later use.
There are seven days in a week and twelve months in a year.
Every evening the lighthouse keeper wrote the weather into his notebook.
A square has four equal sides and four right angles.
The library charges a small fee when a book is returned late.
Sound travels faster through water than it does through air.
She tuned the radio until the voices became clear.
Many birds fly south in autumn because food becomes scarce.
How many minutes are there in an hour? There are sixty.
The old bridge was closed for repairs after engineers found cracks in it.
Sharpen the pencil, draw a straight line, and mark the middle of it.
Whales are mammals, so they must come to the surface to breathe.
The price of wheat rose after a dry summer ruined the harvest.
He missed the last bus and walked home under a sky full of stars.
A loop repeats the same instructions until a condition is no longer true.
Sugar dissolves more quickly in hot tea than in cold tea.
The jury listened carefully to both sides before reaching a verdict.
Dinosaurs died out about sixty six million years ago.
Wash your hands with soap before you prepare a meal.
The heart has four chambers, two on each side.
In the attic they found a trunk full of letters and faded photographs.
Magnets attract objects made of iron, nickel or cobalt.
The opposite of hot is cold, and the opposite of up is down.
A good night of sleep helps the brain remember what it has learned.
The train to the coast leaves from platform four at half past nine.
Wool is warm because it traps air between its fibres.
When the bell rang, the children ran out to the playground.
Galileo looked at Jupiter through his telescope and saw four moons.
The password must have at least ten characters, including a number.
Oil floats on water because it is less dense.
The farmer mended the fence so that the sheep could not escape.
Ice melts when its temperature rises above zero degrees.
The chef tasted the soup and added a pinch of salt.
Most of the surface of our planet is covered by oceans.
The detective noticed that the clock in the hall had stopped at midnight.
A dictionary lists words in alphabetical order and explains their meaning.
Antibiotics work against bacteria, but they do not work against viruses.
The carpenter measured the board twice and cut it once.
The Sahara is a very large desert, and little rain falls there.
An email arrived this morning asking all staff to update their software.
Frogs begin their lives as tadpoles and later grow legs.
If it rains tomorrow, the picnic will be moved to the school hall.
The violin has four strings and is played with a bow.
A decade is ten years, and a century is one hundred years.
The mayor promised to build more paths for bicycles.
Lightning is seen before thunder is heard because light is faster than sound.
The puppy chewed one of my slippers and hid the other.
A thermometer measures temperature and a barometer measures air pressure.
The actors rehearsed the final scene again and again until it felt natural.
Salt lowers the freezing point of water, which keeps roads free of ice.
The bakery on the corner sells fresh rolls from six in the morning.
Honey can be kept for years without spoiling.
The equation has two solutions, one positive and one negative.
Charles Darwin described how species change through natural selection.
The museum guard asked the visitors not to touch the statues.
Owls hunt at night and can turn their heads very far.
To reset the device, hold the power button for five seconds.
The wind turned the blades of the mill and ground the corn.
Clouds are made of tiny drops of water or crystals of ice.
The novel begins with a funeral and ends with a wedding.
Brushing your teeth twice a day helps prevent cavities.
The bank offers a loan at a fixed rate of interest for five years.
A group of lions is called a pride.
He folded the map, put it in his pocket and set off toward the river.
Concrete becomes harder over many days as it dries and cures.
The lawyer advised her client to read the contract before signing it.
Two plus two equals four, and three times three equals nine.
The tide rises and falls because of the pull of the Moon.
A list can be sorted by comparing pairs of items and swapping them.
Candles were the main source of light before electricity.
The gardener watered the roses early, before the sun grew strong.
Neil Armstrong was the first person to walk on the Moon.
The meeting was short because everyone had read the report beforehand.
Butterflies taste their food with their feet.
The roof leaked, so they put a bucket in the middle of the room.
Steel is an alloy made mainly of iron with a little carbon.
Why do leaves fall in autumn? Trees save water by dropping them.
The choir sang softly while the guests took their seats.
A vegetarian does not eat meat or fish.
The runner tied her shoes, stretched her legs and waited for the signal.
Compound interest means that interest is also paid on earlier interest.
Camels can go for many days without drinking water.
Please write your name and address clearly at the top of the form.
The printing press made books cheaper and spread new ideas quickly.
The soup was too hot to eat, so we let it cool.
Electric current flows through copper wires more easily than through rubber.
The captain ordered the crew to lower the sails before the storm.
Bats find their way in the dark by listening for echoes.
The exam lasts three hours, and calculators are not allowed.
A rainbow appears when sunlight passes through drops of rain.
The tailor shortened the sleeves and sewed on a missing button.
Regular maintenance keeps an engine running smoothly for many years.
The human body has more than two hundred bones.
They argued about the rules of the game until it was time for dinner.
The internet connects millions of computers around the world.
Glass can be melted and shaped again and again without losing quality.
The pharmacist explained how often the medicine should be taken.
A compass needle points toward the magnetic north.
The village held a festival each year when the apples were ripe.
Nitrogen makes up most of the air that we breathe.
The teacher drew a diagram on the board to explain the water cycle.
Ludwig van Beethoven continued to compose music after he lost his hearing.
Traffic lights turn from green to yellow and then to red.
The elephant is the largest animal that lives on land.
Her brother repaired the bicycle with a new chain and two tyres.
A democracy is a form of government in which citizens choose their leaders.
The dough must rest for an hour before it goes into the oven.
Saturn is known for the bright rings that surround it.
We painted the fence white, and the gate we left as it was.
The scientist repeated the experiment to be sure of the result.
Snakes shed their skin several times a year as they grow.
Turn left at the church, then follow the road for two miles.
The opposite sides of a rectangle have the same length.
A strong password and a recent backup protect you from many troubles.
The old man fed the pigeons in the park every Sunday afternoon.""".splitlines()
