"""dspy: Predict on a signature, whose instructions are a system message."""

import dspy
from conftest import Server


def language_model(server: Server) -> dspy.LM:
    return dspy.LM(
        f"openai/{server.model}",
        api_base=server.url,
        api_key=server.key,
        cache=False,
        temperature=0,
        max_tokens=60,
        num_retries=0,
    )


def test_predict_fills_its_fields(server: Server) -> None:
    with dspy.context(lm=language_model(server)):
        answer = dspy.Predict("question -> answer")(question="What is the capital of France?")
    assert "Paris" in answer.answer


def test_predict_with_the_json_adapter(server: Server) -> None:
    with dspy.context(lm=language_model(server), adapter=dspy.JSONAdapter()):
        answer = dspy.Predict("text -> name: str, age: int")(text="Ada is 36 years old.")
    assert (answer.name, answer.age) == ("Ada", 36)
