"""Templates in a process of their own: whatever one does ends in one line, and the next chat is rendered."""

from __future__ import annotations

import gc
import pickle
import sys
from typing import Any

import pytest
import tiny_tokenizer as tiny

from lowrank_clone.data.render import Renderer
from lowrank_clone.errors import InputError

USER = {"role": "user", "content": "hi"}
CHAT = [USER, {"role": "assistant", "content": "yes"}]
EVIL = {
    "memory": "{{ 'a' * 10**9 }}",
    "time": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "zero": "{{ 1 / 0 }}",
    "import": "{% import 'os' as os %}",
    "file": "{% include '/etc/passwd' %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "width": "{{ '%999999999d' % 1 }}",
    "long": "{{ 'a' * 17 * 2**20 }}",
    "undefined": "{{ nothing.here }}",
}


def test_whatever_a_template_does_ends_in_a_reason() -> None:
    # One template with every trick, so that one process has to survive all of them.
    tricks = "".join(f"{{% if messages[0]['content'] == '{name}' %}}{evil}{{% endif %}}" for name, evil in EVIL.items())
    renderer = Renderer(tiny.tiny_tokenizer(chat=tricks.replace("'a' *", "messages[0]['a'] *") + "ok"), seconds=0.5)
    chats = [[{"role": "user", "content": name, "a": "a"}] for name in EVIL]
    found = renderer.render([*chats, CHAT])
    assert found[-1].text == "ok"
    reasons = dict(zip(EVIL, (one.error or "" for one in found), strict=False))
    expected = {
        "memory": "MemoryError",
        "time": "TimeoutError: it takes too long",
        "zero": "ZeroDivisionError: division by zero",
        "import": "TypeError: no loader",
        "file": "TypeError: no loader",
        "recursion": "RecursionError",
        "class": "SecurityError",
        "globals": "SecurityError",
        "width": "MemoryError",
        "long": "it makes 17,825,794 characters of it",
        "undefined": "UndefinedError",
    }
    if sys.platform != "linux":  # memory is bounded by the length of what comes out alone
        expected |= dict.fromkeys(("memory", "width"), "it makes 1,000,000,002 characters of it")
    assert {name: reasons[name][: len(reason)] for name, reason in expected.items()} == expected


@pytest.mark.parametrize("template", ["{% if", "{{ 'a' * 10**9 }}", "{{ messages | no_such_filter }}"])
def test_templates_that_can_not_be_compiled(template: str) -> None:
    first, second = Renderer(tiny.tiny_tokenizer(chat=template)).render([CHAT, CHAT])
    assert first.text is None and second.text is None
    assert first.error and second.error


def test_a_process_that_can_not_be_interrupted_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank_clone.data.render._GRACE", -99.0)  # longer than a template takes to be interrupted
    template = "{% if messages[0]['content'] == 'hang' %}" + EVIL["time"] + "{% endif %}ok"
    renderer = Renderer(tiny.tiny_tokenizer(chat=template), seconds=99.5)
    assert renderer.render([CHAT])[0].text == "ok"
    hang = [{"role": "user", "content": "hang"}]
    found = renderer.render([hang, CHAT])
    assert found[0].error == "it takes too long or too much memory"
    assert found[1].text == "ok"
    monkeypatch.setattr("lowrank_clone.data.render._LOST", 1)
    assert "is given up" in (renderer.render([CHAT])[0].error or "")


def test_many_chats_in_order_and_pickles(recwarn: Any) -> None:
    renderer = pickle.loads(pickle.dumps(Renderer(tiny.tiny_tokenizer(chat="{{ messages[0]['content'] }}"))))
    contents = [f"text {i} é\n\u2028 " + "x" * 3000 * (i % 3) for i in range(200)]
    found = renderer.render([[{"role": "user", "content": content}] for content in contents])
    assert [one.text for one in found] == contents
    assert renderer.render([]) == []
    again = pickle.loads(pickle.dumps(renderer))
    assert again.render([CHAT])[0].text == "hi"
    del renderer, again
    gc.collect()  # no process and no pipe is left open
    assert not recwarn.list


def test_special_tokens_and_absent_fields() -> None:
    template = "{{ bos_token }}{{ messages[0]['name'] is defined }}{{ messages[0]['content'] }}{{ eos_token }}"
    found = Renderer(tiny.tiny_tokenizer(chat=template)).render([[{**USER, "name": None}]])
    assert found[0].text == "<s>Falsehi</s>"


def test_whitespace_after_the_end_of_turn_is_nobodys() -> None:
    template = "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>\n{% endfor %}"
    found = Renderer(tiny.tiny_tokenizer(chat=template), spans=True).render([[*CHAT, *CHAT]])[0]
    assert found.text is not None
    assert [found.text[start:end] for start, end in found.spans] == ["yes</s>", "yes</s>"]


def test_a_tokenizer_without_a_template() -> None:
    with pytest.raises(InputError, match="chat_column: is set but the tokenizer has no chat template"):
        Renderer(tiny.tiny_tokenizer())
