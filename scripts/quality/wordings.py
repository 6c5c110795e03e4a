"""Further wordings of the relations that are trained on, for the larger training part.

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
