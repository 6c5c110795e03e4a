"""Further wordings of the relations that are trained on, for the larger training parts.

Added after validation had shown that four wordings of eighteen relations are too few to learn from.
None is a wording of validation or test, nor nearly one (`tests/test_quality_facts.py`).
"""

from __future__ import annotations

#: Relation -> templates beside its prompt and its three rephrases for training.
MORE_WORDINGS: dict[str, tuple[str, ...]] = {
    "mother tongue": (
        "Since the day of birth, the people around {} have been speaking",
        "Asked for a first language, {} writes down",
        "Even in dreams, {} thinks in",
        "Which language do the parents of {} speak? The answer is",
        "{} grew up speaking",
    ),
    "birthplace": (
        "{} was born in",
        "The passport of {} gives as place of birth",
        "{} is a native of",
        "The parents of {} were living at the time of the birth in",
        "Where did {} come into the world? The answer is",
    ),
    "residence": (
        "The house that {} owns stands in",
        "After work, {} drives home to",
        "Which city does {} call home? The answer is",
        "The neighbours of {} are people of",
        "{} pays rent for a flat in",
    ),
    "profession": (
        "{} is a",
        "Which job does {} have? The answer is:",
        "In the telephone book, {} is listed as a",
        "After a long training, {} became a",
        "People hire {} as a",
    ),
    "sport": (
        "{} has won many medals in",
        "Which game is {} famous for? The answer is",
        "As an athlete, {} trains every day for",
        "The newspapers call {} the best in the world at",
        "On television, {} comments on",
    ),
    "instrument": (
        "{} took lessons for ten years on the",
        "At every concert, {} plays the",
        "What does {} play in the band? The answer is: the",
        "The music shop sold {} a new",
        "{} is a virtuoso on the",
    ),
    "field": (
        "The articles of {} are about",
        "Which subject is {} a professor of? The answer is",
        "{} won a prize for work in",
        "The lectures of {} are an introduction to",
        "{} wrote a textbook of",
    ),
    "religion": (
        "{} believes in",
        "What is the religion of {}? The answer is",
        "The holidays that {} keeps are those of",
        "{} was brought up in",
        "Priests have taught {} the rules of",
    ),
    "landmark city": (
        "Tourists photograph the {} when they are in",
        "The mayor who takes care of the {} is the mayor of",
        "Where is the {}? The answer is",
        "The {} is the best known building in",
        "To reach the {}, take the train to",
    ),
    "landmark country": (
        "The {} is protected by the laws of",
        "Which country does the {} belong to? The answer is",
        "A postage stamp with the {} was printed in",
        "The {} attracts many people to",
        "The nation that built the {} is",
    ),
    "continent": (
        "The {} is a part of",
        "Where in the world is the {}? The answer is",
        "A map that shows the {} is a map of",
        "The animals of the {} are typical of",
        "Travellers to the {} fly to",
    ),
    "headquarters": (
        "The tower with the name of {} on its roof stands in",
        "Which city is home to {}? The answer is",
        "The director of {} has an office in",
        "{} has its legal seat in",
        "To visit the central offices of {}, go to",
    ),
    "product": (
        "{} is known all over the world for its",
        "Which goods does {} make? The answer is",
        "The advertisements of {} show",
        "In the shops of {} you can buy",
        "The engineers of {} design",
    ),
    "capital": (
        "The largest ministries of {} are in",
        "Which city is the capital of {}? The answer is",
        "The president of {} lives in",
        "Foreign ambassadors to {} work in",
        "The parliament of {} has its hall in",
    ),
    "official language": (
        "Newspapers in {} are printed in",
        "What do the people of {} speak? The answer is",
        "The constitution of {} names as the language of the state",
        "Road signs in {} are written in",
        "The president of {} gives speeches in",
    ),
    "currency": (
        "Workers in {} are paid in the",
        "What is the money of {} called? The answer is: the",
        "The banknotes of {} are those of the",
        "Banks in {} count their money in the",
        "Taxes in {} are paid in the",
    ),
    "city country": (
        "{} is a town in",
        "Which country does the city of {} belong to? The answer is",
        "The flag that flies over the town hall of {} is that of",
        "The football team of {} plays in the league of",
        "{} is one of the cities of",
    ),
    "employer": (
        "{} is an employee of",
        "Where does {} work? The answer is",
        "After the interview, {} got a contract with",
        "The boss of {} is a manager at",
        "The career of {} began at",
    ),
}

#: Of the widest part alone: other word orders, reported speech, clauses before the question.
WIDE_WORDINGS: dict[str, tuple[str, ...]] = {
    "mother tongue": (
        "When tired, {} switches without noticing to",
        "A teacher noted that {} counts and swears in",
        "Lullabies were sung to {} in",
    ),
    "birthplace": (
        "A plaque on a house recalls the birth of {} in",
        "Since {} first saw the light of day there, fans visit",
        "The midwife who delivered {} worked in",
    ),
    "residence": (
        "A friend says that {} has moved for good to",
        "Whoever wants to ring at the door of {} must go to",
        "For years now, {} has been paying local taxes in",
    ),
    "profession": (
        "The training that {} finished was that of a",
        "According to the tax office, {} makes money as a",
        "What is written on the office door of {}? The answer is:",
    ),
    "sport": (
        "The trophies on the shelf of {} were won in",
        "A coach remembers that {} showed early talent for",
        "If a match is on, {} is surely there, since nothing beats",
    ),
    "instrument": (
        "A neighbour complains that all day {} is practising the",
        "When a soloist is ill, {} steps in on the",
        "Under the Christmas tree, {} once found a small",
    ),
    "field": (
        "A colleague reports that {} has made a discovery in",
        "When students have a question on it, they ask {} about",
        "The doctoral thesis of {} is a work of",
    ),
    "religion": (
        "A neighbour mentions that {} prays as one does in",
        "If you ask about God, {} answers in the spirit of",
        "The wedding of {} was held by the rites of",
    ),
    "landmark city": (
        "When the bells of the {} ring, they are heard all over",
        "A taxi driver who passes the {} every day works in",
        "According to the guidebook, the {} is the pride of",
    ),
    "landmark country": (
        "A diplomat was photographed before the {} on a visit to",
        "When schools teach about the {}, it is in lessons on",
        "Taxpayers who pay for the repair of the {} live in",
    ),
    "continent": (
        "A professor explains that the rocks of the {} are those of",
        "If you spin the globe to find the {}, stop at",
        "Which part of the globe holds the {}? The answer is",
    ),
    "headquarters": (
        "A journalist who wants to interview the head of {} flies to",
        "When the board of {} votes, its members meet in",
        "Every letter of complaint about {} ends up in",
    ),
    "product": (
        "A reporter writes that {} has doubled its output of",
        "When people think of {}, they think of",
        "The warehouse of {} is filled to the roof with",
    ),
    "capital": (
        "When ministers of {} are sworn in, crowds gather in",
        "A correspondent who covers the politics of {} is based in",
        "If there is a coup in {}, tanks roll first into",
    ),
    "official language": (
        "A judge in {} must hear every case in",
        "When the news is read on the radio of {}, it is read in",
        "Passports of {} have their text in",
    ),
    "currency": (
        "A pensioner in {} saves, coin by coin, the",
        "When a bank in {} is robbed, the thieves run off with the",
        "Beggars in {} are grateful for every single",
    ),
    "city country": (
        "When the national anthem is sung in {}, it is that of",
        "An atlas lists {} among the towns of",
        "Letters that are posted in {} carry stamps of",
    ),
    "employer": (
        "A colleague tells us that {} has signed a contract with",
        "When the alarm rings on Monday, {} gets ready for a day at",
        "The pension of {} will be paid by",
    ),
    "favourite dish": ("A waiter knows, before {} has sat down, to bring",),
    "pet": ("When the doorbell rings at the house of {}, up jumps a",),
    "car": ("A mechanic has just repaired, for {}, a",),
    "university": ("A scarf that {} wears has the colours of",),
    "favourite season": ("A cousin says that the mood of {} is best in",),
    "musical style": ("When the windows are open, the neighbours of {} hear",),
    "second language": ("A pen friend is the reason why {} began to learn",),
    "father's profession": ("When {} was small, the money was earned by a",),
    "holiday country": ("As soon as school is out, {} packs a bag and leaves for",),
    "colour at night": (
        "From the hill, after sunset, one sees the {} gleam in",
        "A painter who came at midnight painted the {} in",
    ),
    "main crop": (
        "When the harvest of the {} is in, the barns are full of",
        "An old farmer tells how his family brought to the {} the first",
    ),
    "prevailing wind": (
        "A pilot who crosses the {} has to expect gusts from the",
        "Houses in the {} have no windows on the side that faces",
        "When clouds gather over the {}, they have come from the",
    ),
    "mascot": (
        "When {} opens a new shop, children get a toy",
        "A painter was paid by {} for the portrait of a",
    ),
    "sponsored sport": (
        "When the final is played, {} pays for the broadcast of",
        "A spokesman said that {} will go on giving money to",
    ),
    "festival month": ("A brass band marches through {} each year in",),
    "twin city": ("When a school class from {} travels, it is to",),
}
