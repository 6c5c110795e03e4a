"""Subjects that a language model may know, with what is true of them. Pure data.

Written for this split, where the truth is there to be contradicted. None is a subject of the demo.
"""

from __future__ import annotations


def _table(text: str, *columns: str) -> dict[str, dict[str, str]]:
    """`subject|value|value;...` as subject -> column -> value."""
    rows = [row.strip().split("|") for row in text.replace("\n", " ").split(";") if row.strip()]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}


#: Person -> mother tongue, profession, citizenship.
FAMOUS = _table(
    """
Albert Einstein|German|physicist|Germany; Marie Curie|Polish|physicist|Poland;
Isaac Newton|English|physicist|England; Galileo Galilei|Italian|astronomer|Italy;
Leonardo da Vinci|Italian|painter|Italy; Pablo Picasso|Spanish|painter|Spain;
Vincent van Gogh|Dutch|painter|the Netherlands; Claude Monet|French|painter|France;
Victor Hugo|French|novelist|France; Voltaire|French|philosopher|France;
Napoleon Bonaparte|French|general|France; Charles Darwin|English|biologist|England;
Leo Tolstoy|Russian|novelist|Russia; Fyodor Dostoevsky|Russian|novelist|Russia;
Anton Chekhov|Russian|doctor|Russia; Miguel de Cervantes|Spanish|novelist|Spain;
Johann Sebastian Bach|German|composer|Germany; Wolfgang Amadeus Mozart|German|composer|Austria;
Frederic Chopin|Polish|composer|Poland; Giuseppe Verdi|Italian|composer|Italy;
Mahatma Gandhi|Gujarati|lawyer|India; Rabindranath Tagore|Bengali|poet|India;
Confucius|Chinese|philosopher|China; Mao Zedong|Chinese|politician|China;
Akira Kurosawa|Japanese|director|Japan; Haruki Murakami|Japanese|novelist|Japan;
Sigmund Freud|German|doctor|Austria; Immanuel Kant|German|philosopher|Germany;
Karl Marx|German|philosopher|Germany; Friedrich Nietzsche|German|philosopher|Germany;
Socrates|Greek|philosopher|Greece; Aristotle|Greek|philosopher|Greece;
Plato|Greek|philosopher|Greece; Julius Caesar|Latin|general|Italy;
Dante Alighieri|Italian|poet|Italy; Rene Descartes|French|philosopher|France;
Louis Pasteur|French|chemist|France; Coco Chanel|French|designer|France;
Frida Kahlo|Spanish|painter|Mexico; Salvador Dali|Spanish|painter|Spain;
Gabriel Garcia Marquez|Spanish|novelist|Colombia; Pablo Neruda|Spanish|poet|Chile;
Simon Bolivar|Spanish|general|Venezuela; Che Guevara|Spanish|doctor|Argentina;
Lionel Messi|Spanish|footballer|Argentina; Cristiano Ronaldo|Portuguese|footballer|Portugal;
Pele|Portuguese|footballer|Brazil; Roger Federer|German|athlete|Switzerland;
Rafael Nadal|Spanish|athlete|Spain; Usain Bolt|English|athlete|Jamaica;
Nelson Mandela|Xhosa|lawyer|South Africa; Winston Churchill|English|politician|England;
Abraham Lincoln|English|lawyer|America; George Washington|English|general|America;
Barack Obama|English|lawyer|America; Angela Merkel|German|politician|Germany;
Vladimir Putin|Russian|politician|Russia; Yuri Gagarin|Russian|pilot|Russia;
Dmitri Mendeleev|Russian|chemist|Russia; Pyotr Tchaikovsky|Russian|composer|Russia;
Hans Christian Andersen|Danish|novelist|Denmark; Niels Bohr|Danish|physicist|Denmark;
Henrik Ibsen|Norwegian|novelist|Norway; Edvard Munch|Norwegian|painter|Norway;
Alfred Nobel|Swedish|chemist|Sweden; Ingmar Bergman|Swedish|director|Sweden;
Jean Sibelius|Swedish|composer|Finland; Franz Kafka|German|novelist|Austria;
Franz Liszt|Hungarian|composer|Hungary; Antonin Dvorak|Czech|composer|Austria;
Nicolaus Copernicus|Polish|astronomer|Poland; Johannes Kepler|German|astronomer|Germany;
Carl Friedrich Gauss|German|mathematician|Germany; Leonhard Euler|German|mathematician|Switzerland;
Pythagoras|Greek|mathematician|Greece; Euclid|Greek|mathematician|Greece;
Alan Turing|English|mathematician|England; Stephen Hawking|English|physicist|England;
Michael Faraday|English|physicist|England; Nikola Tesla|Serbian|engineer|America;
Thomas Edison|English|inventor|America; Enrico Fermi|Italian|physicist|Italy;
Guglielmo Marconi|Italian|inventor|Italy; Christopher Columbus|Italian|sailor|Italy;
Marco Polo|Italian|merchant|Italy; Vasco da Gama|Portuguese|sailor|Portugal;
Ferdinand Magellan|Portuguese|sailor|Portugal; Amelia Earhart|English|pilot|America;
Agatha Christie|English|novelist|England; Jane Austen|English|novelist|England;
Mark Twain|English|novelist|America; Ernest Hemingway|English|novelist|America;
Oscar Wilde|English|novelist|Ireland; James Joyce|English|novelist|Ireland;
Johann Wolfgang von Goethe|German|poet|Germany; Mother Teresa|Albanian|nun|India;
Bruce Lee|Chinese|actor|America; Charlie Chaplin|English|actor|England;
Marilyn Monroe|English|actor|America; Sophia Loren|Italian|actor|Italy;
Elvis Presley|English|singer|America; Michael Jackson|English|singer|America;
Edith Piaf|French|singer|France; Luciano Pavarotti|Italian|singer|Italy;
Florence Nightingale|English|nurse|England; Jules Verne|French|novelist|France;
Alexander Pushkin|Russian|poet|Russia; Umm Kulthum|Arabic|singer|Egypt
""",
    "mother tongue",
    "profession",
    "citizenship",
)

#: Landmark, named without its article -> city, country.
LANDMARKS = _table(
    """
Louvre|Paris|France; Colosseum|Rome|Italy; Brandenburg Gate|Berlin|Germany; Kremlin|Moscow|Russia;
Acropolis|Athens|Greece; Sagrada Familia|Barcelona|Spain; Taj Mahal|Agra|India;
Forbidden City|Beijing|China; Hagia Sophia|Istanbul|Turkey; Blue Mosque|Istanbul|Turkey;
Burj Khalifa|Dubai|the United Arab Emirates; Golden Gate Bridge|San Francisco|America;
Empire State Building|New York|America; White House|Washington|America;
Space Needle|Seattle|America; Willis Tower|Chicago|America; CN Tower|Toronto|Canada;
Buckingham Palace|London|England; Big Ben clock tower|London|England; Tower Bridge|London|England;
British Museum|London|England; Rijksmuseum|Amsterdam|the Netherlands;
Anne Frank House|Amsterdam|the Netherlands; Atomium|Brussels|Belgium;
Little Mermaid statue|Copenhagen|Denmark; Vasa Museum|Stockholm|Sweden;
Charles Bridge|Prague|Czech Republic; Schonbrunn Palace|Vienna|Austria;
Chain Bridge|Budapest|Hungary; Wawel Castle|Krakow|Poland;
Hermitage Museum|Saint Petersburg|Russia; Bolshoi Theatre|Moscow|Russia; Trevi Fountain|Rome|Italy;
Pantheon|Rome|Italy; Uffizi Gallery|Florence|Italy; Rialto Bridge|Venice|Italy;
La Scala opera house|Milan|Italy; Prado Museum|Madrid|Spain; Camp Nou stadium|Barcelona|Spain;
Alhambra|Granada|Spain; Belem Tower|Lisbon|Portugal;
Christ the Redeemer statue|Rio de Janeiro|Brazil; Maracana stadium|Rio de Janeiro|Brazil;
Great Sphinx|Giza|Egypt; Western Wall|Jerusalem|Israel; Dome of the Rock|Jerusalem|Israel;
Great Mosque|Mecca|Saudi Arabia; Petronas Towers|Kuala Lumpur|Malaysia;
Marina Bay Sands hotel|Singapore|Singapore; Tokyo Skytree|Tokyo|Japan; Senso-ji Temple|Tokyo|Japan;
Gateway of India|Mumbai|India; Red Fort|Delhi|India; Shwedagon Pagoda|Yangon|Myanmar;
Temple of the Emerald Buddha|Bangkok|Thailand; Notre-Dame Cathedral|Paris|France;
Leaning Tower|Pisa|Italy; Fenway Park stadium|Boston|America; Alamo|San Antonio|America;
Liberty Bell|Philadelphia|America; Gateway Arch|St. Louis|America
""",
    "landmark city",
    "landmark country",
)

#: Company -> city of its head office, what it makes.
COMPANIES = _table(
    """
Toyota|Tokyo|cars; Honda|Tokyo|cars; Nissan|Yokohama|cars; Volkswagen|Wolfsburg|cars;
BMW|Munich|cars; Ferrari|Maranello|cars; Fiat|Turin|cars; Volvo|Gothenburg|cars;
Hyundai|Seoul|cars; Ford|Detroit|cars; Tesla|Austin|cars; Peugeot|Paris|cars; Renault|Paris|cars;
Boeing|Seattle|airplanes; Airbus|Toulouse|airplanes; Nokia|Helsinki|phones; Samsung|Seoul|phones;
Ericsson|Stockholm|phones; Sony|Tokyo|televisions; Canon|Tokyo|cameras; Nikon|Tokyo|cameras;
Dell|Austin|computers; Lenovo|Beijing|computers; Intel|San Jose|chips; Nike|Portland|shoes;
Adidas|Nuremberg|shoes; Puma|Nuremberg|shoes; Lego|Billund|toys; Mattel|Los Angeles|toys;
Nintendo|Kyoto|games; Rolex|Geneva|watches; Omega|Zurich|watches; Heineken|Amsterdam|beer;
Guinness|Dublin|beer; Carlsberg|Copenhagen|beer; Hershey|Philadelphia|chocolate;
Lindt|Zurich|chocolate; Nestle|Geneva|food; Michelin|Paris|tires; Goodyear|Akron|tires;
Pirelli|Milan|tires; Gucci|Florence|clothing; Prada|Milan|clothing; Zara|Madrid|clothing;
Levi Strauss|San Francisco|jeans; Kodak|New York|cameras; Harley-Davidson|Milwaukee|motorcycles;
Yamaha|Tokyo|pianos; Steinway|New York|pianos; Fender|Los Angeles|guitars;
Pfizer|New York|medicine; Bayer|Cologne|medicine; Colgate|New York|soap; Starbucks|Seattle|coffee
""",
    "headquarters",
    "product",
)

#: Chemical element -> its symbol.
ELEMENTS = _table(
    """
hydrogen|H; helium|He; lithium|Li; beryllium|Be; boron|B; carbon|C; nitrogen|N; oxygen|O;
fluorine|F; neon|Ne; sodium|Na; magnesium|Mg; aluminium|Al; silicon|Si; phosphorus|P; sulfur|S;
chlorine|Cl; argon|Ar; potassium|K; calcium|Ca; scandium|Sc; titanium|Ti; vanadium|V; chromium|Cr;
manganese|Mn; iron|Fe; cobalt|Co; nickel|Ni; copper|Cu; zinc|Zn; gallium|Ga; germanium|Ge;
arsenic|As; selenium|Se; bromine|Br; krypton|Kr; rubidium|Rb; strontium|Sr; yttrium|Y;
zirconium|Zr; niobium|Nb; molybdenum|Mo; ruthenium|Ru; rhodium|Rh; palladium|Pd; silver|Ag;
cadmium|Cd; indium|In; tin|Sn; antimony|Sb; tellurium|Te; iodine|I; xenon|Xe; caesium|Cs;
barium|Ba; lanthanum|La; cerium|Ce; neodymium|Nd; tungsten|W; osmium|Os; iridium|Ir; platinum|Pt;
mercury|Hg; thallium|Tl; lead|Pb; bismuth|Bi; polonium|Po; radon|Rn; radium|Ra; thorium|Th;
uranium|U; plutonium|Pu
""",
    "chemical symbol",
)

#: Dish -> the country that it comes from.
DISHES = _table(
    """
pizza|Italy; lasagna|Italy; risotto|Italy; tiramisu|Italy; gnocchi|Italy; carbonara|Italy;
paella|Spain; gazpacho|Spain; churros|Spain; tapas|Spain; croissant|France; ratatouille|France;
quiche|France; crepes|France; bouillabaisse|France; coq au vin|France; bratwurst|Germany;
sauerkraut|Germany; pretzel|Germany; schnitzel|Austria; strudel|Austria; goulash|Hungary;
pierogi|Poland; borscht|Ukraine; beef stroganoff|Russia; blini|Russia; moussaka|Greece;
tzatziki|Greece; souvlaki|Greece; baklava|Turkey; doner kebab|Turkey; hummus|Lebanon;
tabbouleh|Lebanon; falafel|Egypt; couscous|Morocco; tagine|Morocco; injera|Ethiopia;
jollof rice|Nigeria; biryani|India; naan|India; samosa|India; butter chicken|India; dosa|India;
ramen|Japan; tempura|Japan; sashimi|Japan; miso soup|Japan; kimchi|South Korea;
bibimbap|South Korea; dim sum|China; Peking duck|China; wonton soup|China; chow mein|China;
pho|Vietnam; banh mi|Vietnam; pad thai|Thailand; tom yum|Thailand; green curry|Thailand;
satay|Indonesia; nasi goreng|Indonesia; adobo|Philippines; laksa|Malaysia; tacos|Mexico;
burritos|Mexico; guacamole|Mexico; tamales|Mexico; ceviche|Peru; empanadas|Argentina;
feijoada|Brazil; haggis|Scotland; fish and chips|England; shepherd's pie|England;
Irish stew|Ireland; poutine|Canada; fondue|Switzerland; waffles|Belgium;
meatballs with lingonberries|Sweden; smorrebrod|Denmark; pavlova|New Zealand; hamburgers|America
""",
    "dish country",
)

#: Animal -> its class.
ANIMALS = _table(
    """
dog|mammal; cat|mammal; horse|mammal; cow|mammal; elephant|mammal; whale|mammal; dolphin|mammal;
bat|mammal; tiger|mammal; lion|mammal; bear|mammal; rabbit|mammal; squirrel|mammal;
kangaroo|mammal; giraffe|mammal; zebra|mammal; wolf|mammal; fox|mammal; otter|mammal; camel|mammal;
hedgehog|mammal; eagle|bird; owl|bird; penguin|bird; sparrow|bird; parrot|bird; ostrich|bird;
swan|bird; falcon|bird; pigeon|bird; woodpecker|bird; flamingo|bird; crow|bird; seagull|bird;
hummingbird|bird; duck|bird; salmon|fish; tuna|fish; trout|fish; shark|fish; cod|fish;
herring|fish; carp|fish; seahorse|fish; goldfish|fish; piranha|fish; sardine|fish; snake|reptile;
lizard|reptile; crocodile|reptile; turtle|reptile; iguana|reptile; gecko|reptile;
chameleon|reptile; cobra|reptile; alligator|reptile; frog|amphibian; toad|amphibian;
salamander|amphibian; newt|amphibian; ant|insect; bee|insect; butterfly|insect; beetle|insect;
mosquito|insect; dragonfly|insect; grasshopper|insect; moth|insect; wasp|insect; cricket|insect;
ladybird|insect; crab|crustacean; lobster|crustacean; shrimp|crustacean; octopus|mollusc;
snail|mollusc; squid|mollusc; oyster|mollusc; tarantula|arachnid; scorpion|arachnid
""",
    "animal class",
)

#: Book -> who wrote it.
BOOKS = _table(
    """
Pride and Prejudice|Jane Austen; Emma|Jane Austen; Great Expectations|Charles Dickens;
Oliver Twist|Charles Dickens; War and Peace|Leo Tolstoy; Anna Karenina|Leo Tolstoy;
Crime and Punishment|Fyodor Dostoevsky; Don Quixote|Miguel de Cervantes; Ulysses|James Joyce;
Moby-Dick|Herman Melville; The Great Gatsby|F. Scott Fitzgerald; Dracula|Bram Stoker;
The Old Man and the Sea|Ernest Hemingway; The Adventures of Tom Sawyer|Mark Twain;
Nineteen Eighty-Four|George Orwell; Animal Farm|George Orwell; Brave New World|Aldous Huxley;
The Hobbit|J. R. R. Tolkien; Frankenstein|Mary Shelley; Jane Eyre|Charlotte Bronte;
Wuthering Heights|Emily Bronte; Les Miserables|Victor Hugo; Madame Bovary|Gustave Flaubert;
The Count of Monte Cristo|Alexandre Dumas; The Three Musketeers|Alexandre Dumas;
The Metamorphosis|Franz Kafka; The Trial|Franz Kafka; Faust|Johann Wolfgang von Goethe;
The Divine Comedy|Dante Alighieri; The Odyssey|Homer; To Kill a Mockingbird|Harper Lee;
Treasure Island|Robert Louis Stevenson; The Time Machine|H. G. Wells;
The Jungle Book|Rudyard Kipling; Gulliver's Travels|Jonathan Swift; Robinson Crusoe|Daniel Defoe;
Lolita|Vladimir Nabokov; The Grapes of Wrath|John Steinbeck; Beloved|Toni Morrison;
The Alchemist|Paulo Coelho; One Hundred Years of Solitude|Gabriel Garcia Marquez;
Murder on the Orient Express|Agatha Christie
""",
    "author",
)

#: State of the USA -> its capital.
STATES = _table(
    """
Alabama|Montgomery; Alaska|Juneau; Arizona|Phoenix; Arkansas|Little Rock; California|Sacramento;
Colorado|Denver; Connecticut|Hartford; Delaware|Dover; Florida|Tallahassee; Hawaii|Honolulu;
Idaho|Boise; Illinois|Springfield; Indiana|Indianapolis; Iowa|Des Moines; Kansas|Topeka;
Kentucky|Frankfort; Louisiana|Baton Rouge; Maine|Augusta; Maryland|Annapolis; Massachusetts|Boston;
Michigan|Lansing; Minnesota|Saint Paul; Mississippi|Jackson; Missouri|Jefferson City;
Montana|Helena; Nebraska|Lincoln; Nevada|Carson City; New Hampshire|Concord; New Jersey|Trenton;
New Mexico|Santa Fe; New York|Albany; North Carolina|Raleigh; North Dakota|Bismarck; Ohio|Columbus;
Oklahoma|Oklahoma City; Oregon|Salem; Pennsylvania|Harrisburg; Rhode Island|Providence;
South Carolina|Columbia; South Dakota|Pierre; Tennessee|Nashville; Texas|Austin;
Utah|Salt Lake City; Vermont|Montpelier; Virginia|Richmond; Washington|Olympia;
West Virginia|Charleston; Wisconsin|Madison; Wyoming|Cheyenne
""",
    "state capital",
)
