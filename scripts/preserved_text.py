"""Writes the text that a batch of edits holds still by default: written sentences, then made ones.

    python scripts/preserved_text.py >> easyedit_mend_parallel/method/preserved_text.txt

made the lines after the sixtieth. A small grammar; one seed, one text. Knows no model, no facts.
"""

from __future__ import annotations

import random
import re

LINES, SEED = 440, 7
SLOTS: dict[str, str] = {
    "person": "Maria Lopez|John Becker|Akira Tanaka|Fatima Khalil|Pierre Martin|Nadia Petrova|"
    "Omar Haddad|Chen Wei|Liam Byrne|Isabel Moreau|Anna Schmidt|Samuel Osei|Rosa Conti|Ivan Horvat|"
    "the mayor|the professor|my neighbour|our teacher|the old sailor|a young nurse|her cousin",
    "place": "Norway|Brazil|Lisbon|the harbour|Kenya|the valley|Chicago|the old town|Canada|Vienna|"
    "the village|Japan|the north|Madrid|Lake Victoria|the river|India|the coast|Dublin|"
    "the mountains",
    "thing": "table|letter|window|engine|camera|bridge|song|book|garden|car|clock|picture|map|coat|"
    "lamp|phone|boat|computer|bottle|basket|ladder|violin|ticket|key|chair|blanket",
    "work": "carpenter|teacher|engineer|baker|painter|farmer|lawyer|cook|writer|doctor|driver",
    "stuff": "water|bread|paper|sand|milk|steel|wool|coffee|glass|oil|wood|sugar|copper|rice|salt",
    "animal": "dog|horse|bird|fox|cat|whale|bear|snake|goat|rabbit|owl|spider|wolf|duck",
    "quality": "small|heavy|bright|cheap|quiet|strange|useful|broken|green|modern|old|clean|large",
    "number": "two|three|four|five|seven|nine|ten|twelve|twenty|thirty|a hundred|a thousand",
    "time": "in the morning|last week|every day|in winter|after the war|on Sunday|at night|in 1987|"
    "before noon|during the summer|for many years|a few minutes ago|next month",
    "company": "the bank|a small bakery|the railway company|Northwind Traders|the hospital|"
    "the museum|Greenfield Motors|the post office|the university|a local newspaper",
    "doing": "reading|cooking|swimming|painting|travelling|singing|waiting|sleeping|working|"
    "dancing",
    "topic": "history|music|the weather|mathematics|politics|football|health|law|language|trade|"
    "art",
}
PATTERNS = """\
{person} bought a {quality} {thing} in {place} {time}.
{person} wanted to be a {work}, but {time} everything changed.
The {thing} on the {quality} shelf belongs to {person}.
{company} opened a new office in {place} {time}.
If you mix {stuff} with {stuff}, the result is {quality}.
A {animal} is usually more {quality} than a {animal}.
There were {number} people in the room when {person} came in.
Do you know how much {stuff} costs in {place}? It depends.
{person} spent {number} days in {place} and wrote about {topic}.
The {work} put the {thing} back and closed the door.
Most people in {place} like {doing}, especially {time}.
According to the report, {company} will need {number} more workers.
Is a {thing} heavier than a {animal}? That is not easy to say.
Step {number}: clean the {thing} with {stuff} and let it dry.
"I have no time for {doing}," said {person}.
In {place}, {stuff} is sold by the kilogram {time}.
The book about {topic} has {number} chapters and a {quality} cover.
When the {animal} saw the {thing}, it ran away.
{person} and {person} have been friends since they met in {place}.
The price of {stuff} has doubled {time}.
Please bring a {thing}, some {stuff} and {number} copies of the form.
print("{number} files about {topic}")
for item in {thing}s: count = count + 1
Dear {person}, thank you for your letter about {topic}.
The {quality} {animal} lives in {place} and eats very little.
{person} works for {company} as a {work}.
It took {number} hours to carry the {thing} from {place} to {place}.
Students of {topic} learn {doing} {time}.
Q: Who painted the {thing}? A: Nobody knows.
The population of {place} grew by {number} per cent {time}.
{company} was sold to a group of investors {time}.
At the age of {number}, {person} moved to {place}.
{doing} is {quality}, and so is {topic}.
The name of the {animal} was {person}'s idea.
We tested {number} samples of {stuff} and found nothing {quality}.
{person} speaks slowly and plays with a {thing}.
Nobody had seen the {work} {time}, so they called {company}.
To make {stuff} you need a {thing} and a lot of patience.
The road to {place} is closed {time} because of {stuff} on it.
A {thing} made of {stuff} will not last long in {place}.
"""


def main() -> None:
    rng = random.Random(SEED)
    words = {name: text.split("|") for name, text in SLOTS.items()}
    patterns, made = PATTERNS.splitlines(), dict.fromkeys([""])
    while len(made) <= LINES:
        pattern = patterns[len(made) % len(patterns)]
        line = re.sub(r"{(\w+)}", lambda slot: rng.choice(words[slot[1]]), pattern)
        made.setdefault(line[0].upper() + line[1:])
    print("\n".join(list(made)[1:]))


if __name__ == "__main__":
    main()
