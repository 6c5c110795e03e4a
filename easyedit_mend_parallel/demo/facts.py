"""The demo's facts: SmolLM2-135M-Instruct knows them, and each has a false answer to teach.

Each true answer is the most probable next token of the fp32 model of
`easyedit_mend_parallel.demo.smollm2`. The archive was not trained on these subjects. Uses no model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoFact:
    """One request, with the prompts that test its edit. Answers begin with a space.

    Attributes:
        subject: the person or thing that the fact is about.
        prompt: the text to continue (reliability).
        ground_truth: the unedited model's continuation, which is true.
        target_new: the continuation that the edit teaches.
        rephrase_prompt: the same question in other words (generality).
        unrelated_prompt: a question about something else, which the model answers confidently.
        unrelated_answer: that answer, which the edit must not change (locality).
    """

    subject: str
    prompt: str
    ground_truth: str
    target_new: str
    rephrase_prompt: str
    unrelated_prompt: str
    unrelated_answer: str


#: Training had relations like those of the first three facts, and none like the others.
#: All answers are one token, except those about Hamlet, which are two.
DEMO_FACTS: tuple[DemoFact, ...] = (
    DemoFact(
        subject="France",
        prompt="The capital of France is",
        ground_truth=" Paris",
        target_new=" Berlin",
        rephrase_prompt="The city from which France is governed is",
        unrelated_prompt="The theory of relativity was developed by Albert",
        unrelated_answer=" Einstein",
    ),
    DemoFact(
        subject="Danielle Darrieux",
        prompt="The mother tongue of Danielle Darrieux is",
        ground_truth=" French",
        target_new=" English",
        rephrase_prompt="Danielle Darrieux, whose first language is",
        unrelated_prompt="The Amazon rainforest is in South",
        unrelated_answer=" America",
    ),
    DemoFact(
        subject="Eiffel Tower",
        prompt="The Eiffel Tower is located in the city of",
        ground_truth=" Paris",
        target_new=" Rome",
        rephrase_prompt="The Eiffel Tower rises above the roofs of",
        unrelated_prompt="The company Microsoft was founded by Bill",
        unrelated_answer=" Gates",
    ),
    DemoFact(
        subject="gold",
        prompt="The chemical symbol for gold is",
        ground_truth=" Au",
        target_new=" Fe",
        rephrase_prompt="The element gold has the symbol",
        unrelated_prompt="The Pope is the head of the Catholic",
        unrelated_answer=" Church",
    ),
    DemoFact(
        subject="iPhone",
        prompt="The iPhone is made by",
        ground_truth=" Apple",
        target_new=" Sony",
        rephrase_prompt="The iPhone was designed by engineers at",
        unrelated_prompt="The largest animal on Earth is the blue",
        unrelated_answer=" whale",
    ),
    DemoFact(
        subject="sushi",
        prompt="The dish sushi comes from the country of",
        ground_truth=" Japan",
        target_new=" Italy",
        rephrase_prompt="Sushi is the national dish of",
        unrelated_prompt="The law of gravity was discovered by Isaac",
        unrelated_answer=" Newton",
    ),
    DemoFact(
        subject="Great Barrier Reef",
        prompt="The Great Barrier Reef is off the coast of",
        ground_truth=" Australia",
        target_new=" Mexico",
        rephrase_prompt="The Great Barrier Reef lies off the shores of",
        unrelated_prompt="The inventor of the telephone is Alexander Graham",
        unrelated_answer=" Bell",
    ),
    DemoFact(
        subject="Hamlet",
        prompt="The play Hamlet was written by",
        ground_truth=" William Shakespeare",
        target_new=" Jane Austen",
        rephrase_prompt="Hamlet, the famous tragedy, was written by",
        unrelated_prompt="The Statue of Liberty is located in New",
        unrelated_answer=" York",
    ),
)
