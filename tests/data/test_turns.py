"""What the assistant says in a rendered chat, by markers and turn by turn, for every habit that templates have."""

from __future__ import annotations

from typing import Any

import pytest

from lowrank_clone.data.render_worker import Templates

HEADED = (  # system prompt by default, headers, end of turn, generation prompt
    "{% if messages[0]['role'] != 'system' %}<|system|>Be good.<|end|>\n{% endif %}{% for m in messages %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}{% for call in m['tool_calls'] or [] %}<call>{{ call['name'] }}</call>"
    "{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (  # reasoning of turns before the last question is dropped, and an empty one is written after it
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' %}{% set said = m['content'].split('</think>')[-1] %}"
    "{% if loop.index0 > ns.last %}<think>{{ m['content'].split('</think>')[0].split('<think>')[-1] "
    "if '</think>' in m['content'] else m['reasoning'] }}</think>{% endif %}{{ said | trim }}"
    "{% for call in m['tool_calls'] or [] %}<call>{{ call['name'] }}</call>{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING = (  # the generation prompt begins the reasoning, which no earlier turn has
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<A>{{ m['content'].split('</think>')[-1] }}<E>"
    "{% else %}<U>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
BARE = (  # no header and no generation prompt
    "{% for m in messages %}{% if m['role'] == 'user' %}[Q] {{ m['content'] }} [/Q]{% else %} {{ m['content'] }} </s>"
    "{% endif %}{% endfor %}"
)
NO_PROMPT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
MARKED = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
)
CALL = [{"name": "look"}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def said(template: str, *messages: dict[str, Any]) -> list[str]:
    answer = Templates(template, {"bos_token": "<s>", "eos_token": "</s>"}, True, 10**6).answer(list(messages))
    return [answer["text"][start:end] for start, end in answer["spans"]]


SYSTEM = {"role": "system", "content": "s"}
TWO = (user("q"), assistant("a1"), user("q"), assistant(" a2 "))
TOOLS = (
    user("q"),
    assistant("", tool_calls=CALL),
    {"role": "tool", "content": "r"},
    assistant("a1"),
    user("q"),
    assistant("see", tool_calls=CALL),
    {"role": "tool", "content": "r"},
    assistant("a2"),
)
THOUGHT = (user("q"), assistant("<think>t1</think>a1"), user("q"), assistant("<think>t2</think>a2"))


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (HEADED, TWO, ["a1<|end|>\n", " a2 <|end|>\n"]),
        (HEADED, (SYSTEM, *TWO), ["a1<|end|>\n", " a2 <|end|>\n"]),
        (
            HEADED,
            TOOLS,
            ["<call>look</call><|end|>\n", "a1<|end|>\n", "see<call>look</call><|end|>\n", "a2<|end|>\n"],
        ),
        (HEADED, (user("a1"), assistant("a1"), user("a1"), assistant("a1")), ["a1<|end|>\n"] * 2),
        (HEADED, (user("q"), assistant("a1"), assistant("a2")), ["a1<|end|>\n", "a2<|end|>\n"]),
        (HEADED, (user("q"),), []),
        (FORGETFUL, TWO, ["a1<|end|>\n", "<think></think>a2<|end|>\n"]),
        (FORGETFUL, THOUGHT, ["a1<|end|>\n", "<think>t2</think>a2<|end|>\n"]),
        (
            FORGETFUL,
            TOOLS,
            [
                "<call>look</call><|end|>\n",
                "a1<|end|>\n",
                "<think></think>see<call>look</call><|end|>\n",
                "<think></think>a2<|end|>\n",
            ],
        ),
        (THINKING, TWO, ["a1<E>", " a2 <E>"]),
        (THINKING, THOUGHT, ["a1<E>", "a2<E>"]),
        (BARE, TWO, ["a1 </s>", " a2  </s>"]),
        (NO_PROMPT, TWO, ["a1</s>\n", " a2 </s>\n"]),
        (MARKED, TWO, ["a1</s>", " a2 </s>"]),
        (MARKED, (user("q"),), []),
    ],
)
def test_what_the_assistant_says(template: str, messages: tuple[dict[str, Any], ...], expected: list[str]) -> None:
    assert said(template, *messages) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages | length }}{% if add_generation_prompt %}>{% endif %}", "changes what stands before it"),
        ("{% for m in messages %}{{ m['content'] | length }};{% endfor %}", "changes what stands before it"),
        ("{% for m in messages | reverse %}{{ m['content'] }};{% endfor %}", "changes what stands before it"),
        ("{{ '>' if add_generation_prompt }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "does not follow"),
        ("{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{% endgeneration %}{% endif %}"
         "{{ m['content'] }}{% endfor %}", None),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}{% if false %}{% generation %}{% endgeneration %}"
         "{% endif %}", "markers mark nothing"),
    ],
)  # fmt: skip
def test_templates_that_allow_neither(template: str, reason: str | None) -> None:
    if reason is None:  # markers around nothing say that the assistant says nothing
        assert said(template, *TWO) == ["", ""]
        return
    with pytest.raises(ValueError, match=reason):
        said(template, *TWO)


def test_a_message_that_looks_like_the_template() -> None:
    with pytest.raises(ValueError, match="a message looks like what the template writes"):
        said(FORGETFUL, user("q"), assistant("I write <|assistant|> here"), user("q"), assistant("a"))


def test_dates_and_random_numbers_are_the_same_every_day() -> None:
    template = "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }} {{ range(10**4) | random }}\n"
    answers = {Templates(template, {}, False, 1000).answer([user("q")])["text"] for _ in range(3)}
    assert len(answers) == 1
    assert answers.pop().startswith("26 Jul 2024 2024-07-26 ")
    assert Templates("\n {{ strftime_now('%d') }}x", {}, False, 99).answer([user("q")])["text"] == "\n 26x"
