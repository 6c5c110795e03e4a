"""Words that facts are made of: invented names, countries, and objects by kind. Pure data.

Knows neither relations nor how they are drawn.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


def listed(text: str) -> list[str]:
    """The entries of a text, which commas part."""
    return [entry.strip() for entry in text.split(",")]


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
