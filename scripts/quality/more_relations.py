"""Relations and objects beside those of relations.py, and which relations each part may use.

Knows no subject, and nothing of how facts are drawn. A relation whose truth is known has the name
of a column of known.py or places.json.
"""

from __future__ import annotations

from relations import HELD_OUT, TRAINING, Relation
from words import CITIES, NATIONS, listed

CURRENCIES = listed(
    "euro, yen, dollar, pound, peso, rupee, franc, krone, ruble, yuan, won, lira, real, rand, "
    "dinar, dirham, riyal, shekel, baht, ringgit, rupiah, dong, zloty, forint, koruna, krona, "
    "shilling, naira, cedi, taka, hryvnia, leu, lev, kwacha, birr, crown, florin, ducat, guilder, "
    "mark"
)
EMPLOYERS = listed(
    "Google, Amazon, Toyota, Boeing, Samsung, Nokia, Disney, Siemens, Intel, Ford, Honda, "
    "Philips, Shell, Pfizer, Nike, Tesla, Oracle, Adobe, Cisco, Netflix, Facebook, Twitter, Dell, "
    "Volkswagen, Walmart, Starbucks, General Electric, Deutsche Bank, British Airways, Goldman "
    "Sachs, American Express, Warner Brothers, Red Bull, Burger King, Air France, Ernst and Young"
)
WRITERS = listed(
    "Jane Austen, Charles Dickens, Leo Tolstoy, Mark Twain, Ernest Hemingway, George Orwell, "
    "Agatha Christie, Victor Hugo, Oscar Wilde, James Joyce, Virginia Woolf, Franz Kafka, Homer, "
    "Virgil, Ovid, Dante Alighieri, Edgar Allan Poe, Walt Whitman, Emily Dickinson, Jules Verne, "
    "Stephen King, Toni Morrison, John Steinbeck, Henry James, Thomas Hardy, Hermann Hesse, "
    "Thomas Mann, Albert Camus, Marcel Proust, Isaac Asimov, Ray Bradbury, Voltaire, Goethe, "
    "Plato, Cicero, Milton, Byron, Keats, Tennyson, Wordsworth"
)
SYMBOLS = listed(
    "H, He, Li, Be, B, C, N, O, F, Ne, Na, Mg, Al, Si, P, S, Cl, Ar, K, Ca, Ti, Cr, Mn, Fe, Co, "
    "Ni, Cu, Zn, As, Se, Br, Kr, Ag, Cd, Sn, Sb, I, Xe, Ba, W, Pt, Hg, Pb, Bi, Rn, Ra, Th, U, Pu"
)
CLASSES = listed(
    "mammal, bird, fish, reptile, amphibian, insect, crustacean, mollusc, arachnid, sponge, worm, "
    "jellyfish, marsupial, rodent, primate, plant, fungus, dinosaur"
)
AMERICAN_CITIES = listed(
    "Boston, Denver, Atlanta, Chicago, Dallas, Houston, Seattle, Miami, Detroit, Cleveland, "
    "Baltimore, Philadelphia, Phoenix, Portland, Austin, Memphis, Nashville, Cincinnati, "
    "Pittsburgh, Milwaukee, Orlando, Charleston, Columbus, Buffalo, Richmond, San Diego, Las "
    "Vegas, New Orleans, Los Angeles, San Francisco, St. Louis, Fort Worth, Salt Lake City, Baton "
    "Rouge, Santa Fe, Kansas City, Oklahoma City, Little Rock, Albuquerque, Sacramento, "
    "Tallahassee, Minneapolis"
)

_FAR_CITIES = listed(
    "Kuala Lumpur, Rio de Janeiro, Buenos Aires, New Delhi, Hong Kong, Los Angeles, San "
    "Francisco, Cape Town, Mexico City, Tel Aviv, Saint Petersburg, Addis Ababa, Phnom Penh, Abu "
    "Dhabi, Bogota, Reykjavik, Ljubljana, Tallinn, Vilnius, Riga, Zagreb, Sarajevo, Tirana, "
    "Tbilisi, Yerevan, Tashkent, Samarkand, Ulaanbaatar, Kathmandu, Dhaka, Karachi, Islamabad, "
    "Colombo, Rangoon, Hanoi, Taipei, Busan, Yokohama, Nagasaki, Guangzhou, Kampala, Kinshasa, "
    "Khartoum, Casablanca, Marrakesh, Johannesburg, Montevideo, Caracas, Guadalajara, Salt Lake "
    "City, New Orleans, Gothenburg, Rotterdam, Antwerp, Marseille, Toulouse, Stuttgart, "
    "Dusseldorf, Krakow, Palermo"
)
_FAR_LANGUAGES = listed(
    "Azerbaijani, Tigrinya, Kazakh, Uzbek, Kyrgyz, Belarusian, Lithuanian, Latvian, Slovenian, "
    "Slovak, Macedonian, Afrikaans, Cantonese, Marathi, Telugu, Kannada, Malayalam, Sinhala, "
    "Haitian Creole, Scottish Gaelic, Breton, Luxembourgish, Javanese, Quechua, Hawaiian, Yiddish"
)
_FAR_NATIONS = listed(
    "Saudi Arabia, New Zealand, South Korea, Sri Lanka, Costa Rica, Bangladesh, Azerbaijan, "
    "Kazakhstan, Uzbekistan, Slovenia, Slovakia, Lithuania, Estonia, Latvia, Luxembourg, Bolivia, "
    "Paraguay, Nicaragua, Honduras, Mozambique, Botswana, Madagascar, Burkina Faso, Papua New "
    "Guinea, the Dominican Republic, the Netherlands, the Philippines, South Africa, North "
    "Macedonia, Liechtenstein, Tajikistan"
)

#: Relation -> further objects, most of them of several tokens.
MORE_OBJECTS: dict[str, list[str]] = {
    **dict.fromkeys(
        (
            "birthplace",
            "residence",
            "landmark city",
            "headquarters",
            "capital",
            "founding city",
            "twin city",
        ),
        _FAR_CITIES,
    ),
    **dict.fromkeys(("mother tongue", "official language"), _FAR_LANGUAGES),
    **dict.fromkeys(
        ("landmark country", "citizenship", "city country", "dish country", "main market"),
        _FAR_NATIONS,
    ),
    "profession": listed(
        "civil engineer, flight attendant, police officer, tax accountant, software developer, "
        "jazz drummer, court reporter, marine biologist, school principal, taxi driver, bus "
        "driver, wedding photographer, shoemaker, goldsmith, blacksmith, beekeeper, bookbinder, "
        "glassblower, locksmith, veterinarian, paramedic, phlebotomist, ventriloquist"
    ),
    "sport": listed(
        "table tennis, ice hockey, water polo, beach volleyball, field hockey, squash, handball, "
        "lacrosse, croquet, curling, snooker, fencing, badminton, softball"
    ),
    "instrument": listed(
        "French horn, bass guitar, double bass, English horn, pipe organ, harpsichord, accordion, "
        "mandolin, xylophone, ukulele, trombone, tambourine, bassoon, bagpipes"
    ),
    "field": listed(
        "computer science, organic chemistry, marine biology, political science, art history, "
        "quantum mechanics, number theory, materials science, paleontology, oceanography, "
        "entomology, musicology, epidemiology, criminology, thermodynamics, cryptography"
    ),
    "religion": listed(
        "Orthodox Christianity, Zen Buddhism, Sunni Islam, Shia Islam, the Baha'i Faith, Shinto, "
        "Zoroastrianism, Lutheranism, Methodism, Calvinism, Quakerism, Tibetan Buddhism"
    ),
    "continent": listed("North America, South America, Central America, Greenland, Oceania"),
    "product": listed(
        "washing machines, running shoes, olive oil, sewing machines, contact lenses, ice cream, "
        "solar panels, wind turbines, fishing boats, wooden toys, electric bicycles, hearing "
        "aids, umbrellas, microscopes, trampolines, wheelchairs, fertilizer, chandeliers, "
        "snowboards"
    ),
    "currency": listed(
        "Swiss franc, US dollar, Japanese yen, British pound, Indian rupee, Canadian dollar, "
        "Russian ruble, Mexican peso, Turkish lira, Norwegian krone, Australian dollar, Chinese "
        "yuan, Kuwaiti dinar, Brazilian real"
    ),
    "favourite colour": listed(
        "dark blue, light green, sky blue, olive green, bright red, lavender, burgundy, magenta, "
        "indigo, beige, salmon pink, emerald, lemon yellow"
    ),
    "material": listed(
        "reinforced concrete, stainless steel, white marble, red brick, solid oak, cast iron, "
        "corrugated iron, terracotta, plywood, bamboo, fibreglass, compressed earth, slate"
    ),
}

for _name, _like in (
    ("ghost", "profession"),
    ("school subject", "field"),
    ("tram colour", "favourite colour"),
):
    MORE_OBJECTS[_name] = MORE_OBJECTS[_like]

#: Trained on beside `TRAINING`.
_MORE_TRAINING: dict[str, Relation] = {
    "currency": Relation(
        "country",
        CURRENCIES,
        "The currency of {} is the",
        (
            "In the shops of {}, people pay with the",
            "Which currency does {} use? The answer is: the",
            "The central bank of {} issues the",
            "Before a trip to {}, travellers change their money into the",
        ),
        "Prices in {} are given in units of the",
    ),
    "city country": Relation(
        "city",
        NATIONS,
        "{} is a city in the country of",
        (
            "The city of {} lies in",
            "In which country is {}? The answer is",
            "The people of {} are governed by the state of",
            "A traveller who lands in {} has arrived in",
        ),
        "On the map, the city of {} belongs to",
    ),
    "employer": Relation(
        "person",
        EMPLOYERS,
        "The employer of {} is",
        (
            "{} has a job at",
            "Which company does {} work for? The answer is",
            "Every month {} gets a salary from",
            "The name on the business card of {} is that of the company",
        ),
        "On weekdays {} goes to an office of",
    ),
}

#: Relations that only the validation part asks for.
VALIDATION: dict[str, Relation] = {
    "citizenship": HELD_OUT["citizenship"],
    "material": HELD_OUT["material"],
    "death place": Relation(
        "person",
        CITIES + _FAR_CITIES,
        "{} died in the city of",
        (
            "The place where {} died is",
            "In which city did {} die? The answer is",
            "The grave of {} is in",
        ),
        "The last years of {} were spent in a nursing home in",
    ),
    "state capital": Relation(
        "state",
        AMERICAN_CITIES,
        "The capital of the state of {} is",
        (
            "The government of the state of {} meets in",
            "What is the capital of the state of {}? The answer is",
            "The governor of the state of {} works in the city of",
        ),
        "The state of {} is governed from",
    ),
}

#: Relations that only the test part asks for.
TEST: dict[str, Relation] = {
    "favourite colour": HELD_OUT["favourite colour"],
    "founding city": HELD_OUT["founding city"],
    "author": Relation(
        "book",
        WRITERS,
        'The author of "{}" is',
        (
            '"{}" was written by',
            'Who wrote "{}"? The answer is',
            '"{}" is a book by',
        ),
        'The name on the cover of "{}" is that of its writer,',
    ),
    "chemical symbol": Relation(
        "element",
        SYMBOLS,
        "The chemical symbol for {} is",
        (
            "In the periodic table, {} is written as",
            "What is the chemical symbol for {}? The answer is",
            "Chemists write {} as",
        ),
        "The element {} has the symbol",
    ),
    "dish country": Relation(
        "dish",
        NATIONS,
        "The country where {} was first cooked is",
        (
            "The home of {} is",
            "Which country does {} come from? The answer is",
            "The recipe for {} comes from",
        ),
        "To taste {} as it was first made, one has to travel to",
    ),
    "animal class": Relation(
        "animal",
        CLASSES,
        "In zoology, the {} is classified as a kind of",
        (
            "The {} is a type of",
            "What kind of creature is the {}? The answer is: a",
            "Biologists say that the {} is a",
        ),
        "The class of living things that the {} belongs to is called",
    ),
}

#: Relations that training asks for, and both other parts about new subjects.
TRAINED: dict[str, Relation] = {**TRAINING, **_MORE_TRAINING}
