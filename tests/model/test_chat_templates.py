"""Chat templates: a hostile one ends in one line, an odd one loses no words."""

import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hostile import damaged
from rlif.config import PolicyConfig
from rlif.errors import RlifError
from rlif.model import chat_templates, template_worker
from rlif.model.loading import load_policy
from rlif.model.policy import Policy
from rlif.model.template_worker import TemplateWorker
from rlif.tasks.templates import TEMPLATES, render_messages
from toys import toy_policy

QUESTION = [{"role": "user", "content": "what is 1+1?"}]
WITH_SYSTEM = [{"role": "system", "content": "answer in a box"}, *QUESTION]
TALK = [*QUESTION, {"role": "assistant", "content": "2, in a box"}, {"role": "user", "content": "and 2+2?"}]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GENERATION = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}"
    "{% endgeneration %}{% continue %}{% endif %}{{ message.content | trim }}{{ eos_token }}{% endfor %}"
)
USER_ONLY = "{% for message in messages if message.role == 'user' %}{{ message.content }}\n{% endfor %}"
LAST_ONLY = "{{ messages[-1].content }}"
DAMAGED_TEMPLATES = 100


@pytest.fixture(autouse=True, scope="module")
def quick_worker() -> Iterator[TemplateWorker]:
    """A worker with less patience, so that hostile templates cost a test two seconds each, and not five."""
    worker = TemplateWorker(time_limit=2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_templates, "worker", lambda: worker)
        yield worker
    worker.close()


def with_template(template: Any) -> Policy:
    policy = toy_policy()
    policy.tokenizer.chat_template = template
    return policy


def complaint(template: Any, messages: Any = QUESTION) -> str:
    with pytest.raises(RlifError) as raised:
        with_template(template).encode_messages(messages)
    assert str(raised.value).isprintable()
    assert str(raised.value).startswith("chat_template: the template of toy llama ")
    return str(raised.value)


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "a loop": (LOOP, "takes longer than 2 s (user)"),
    "a loop for long questions": ("{% if messages[0].content | length > 5 %}" + LOOP + "{% endif %}", "takes longer"),
    "a loop that writes": (
        "{% for a in range(99999) %}{% for b in range(9999) %}xxxx{% endfor %}{% endfor %}",
        "(user); fix it",  # time or memory, whichever ends first
    ),
    "a power": ("{{ 9 ** (9 ** 9) }}", "takes longer than 2 s"),
    "gigabytes": ("{{ 'a' * 10 ** 10 }}", "needs more than 512 MB"),
    "gigabytes by the question": ("{{ messages[0].content * 10 ** 9 }}", "needs more than 512 MB"),
    "a list of gigabytes": ("{{ [0] * 10 ** 10 }}", "needs more than 512 MB"),
    "doubling": (
        "{% set x = namespace(y='aaaa') %}{% for _ in range(60) %}{% set x.y = x.y + x.y %}{% endfor %}{{ x.y }}",
        "(user); fix it",  # time or memory: whichever runs out first
    ),
    "padding": ("{{ '%0999999999d' | format(1) }}", "needs more than 512 MB"),
    "centring": ("{{ 'a' | center(10 ** 10) }}", "needs more than 512 MB"),
    "megabytes": ("{{ 'a' * 2000000 }}", "makes 2,000,000 characters of a short conversation"),
    "chance": ("{{ messages[0].content }}{{ ['a', 'b'] | random }}", "draws words at random (user); fix it"),
    "filling": ("{{ messages[0].content }}{{ lipsum(n=1) }}", "draws words at random (user); fix it"),
    "division": ("{{ 1 / 0 }}", "refuses user (division by zero"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses user (maximum recursion depth exceeded"),
    "an attribute that is not there": ("{{ messages.nothing.more }}", "refuses user ("),
    "an index that is not there": ("{{ messages[7].content }}", "refuses user ("),
    "its own exception": ("{{ raise_exception('no\\x1b[31m!\\nNo') }}", "refuses user (no\\x1b[31m!"),
    "a type": ("{{ 'a' + 1 }}", "refuses user ("),
    "a syntax": ("{% for %}", "refuses user ("),
    "an unknown filter": ("{{ 'a' | nothing }}", "refuses user (No filter named 'nothing'"),
    "another file": ("{% include 'etc' %}", "refuses user ("),
    "nesting": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "refuses user ("),
    "a long chain": ("{{ " + "1+" * 3000 + "1 }}", "refuses user ("),
    "digits": ("{{ 10 ** 5000 }}", "refuses user (Exceeds the limit"),
    "a way out of the sandbox": ("{{ ''.__class__.__mro__ }}", "refuses user ("),
    "several without a default": (
        {"tool_use": CHATML, "rag": CHATML},
        "refuses user (it has the templates",
    ),
    "no text": (5, "refuses user (its chat_template is a int, not a text)"),
    "nothing": ("", "drops or rewrites the user message"),
    "other words": ("{{ messages[0].content | upper }}", "drops or rewrites the user message"),
    "half the words": ("{{ messages[0].content[:5] }}", "drops or rewrites the user message"),
    "escaped words": ("{{ messages[0].content | replace('+', ' plus ') }}", "drops or rewrites the user message"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_is_one_line(kind: str) -> None:
    template, said = HOSTILE[kind]
    assert said in complaint(template)


@pytest.mark.filterwarnings("ignore:the chat template")
@pytest.mark.parametrize("template", [CHATML, GENERATION, USER_ONLY])
def test_a_damaged_template_loses_no_word_or_is_one_line(template: str) -> None:
    chance, said = random.Random(template), []
    for _ in range(DAMAGED_TEMPLATES):
        policy = with_template(damaged(template.encode(), chance).decode("utf-8", "replace"))
        try:
            text, _ = policy.encode_messages(WITH_SYSTEM)
        except RlifError as error:
            said.append(str(error))
        else:
            assert all(message["content"] in text for message in WITH_SYSTEM)
    assert 0 < len(said) < DAMAGED_TEMPLATES
    for message in said:
        assert message.isprintable()
        assert message.startswith("chat_template: the template of toy llama ")


def test_a_worker_that_was_killed_is_replaced() -> None:
    assert "takes longer" in complaint(LOOP)
    assert with_template(CHATML).encode_messages(QUESTION)[0].count("what is 1+1?") == 1


def test_threads_that_ask_at_once_get_their_own_answers(quick_worker: TemplateWorker) -> None:
    long = "{{ messages[0]['content'] * 100000 }}"
    expected = [None, quick_worker.complaint(long, QUESTION, {})] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda t: quick_worker.complaint(t, QUESTION, {}), [LAST_ONLY, long] * 4))
    assert found == expected
    assert "characters" in str(expected[1])


def test_a_stall_of_the_machine_is_not_the_templates_time() -> None:
    worker = TemplateWorker(time_limit=0.2)
    process = worker._running()
    os.kill(process.pid, signal.SIGSTOP)
    later = threading.Timer(1.0, os.kill, (process.pid, signal.SIGCONT))
    later.start()
    assert worker.complaint(CHATML, QUESTION, {}) is None
    assert worker._process is process
    later.join()
    worker.close()


def test_a_worker_that_does_not_answer_or_is_killed_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = TemplateWorker(wall_limit=1.0)
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        process = worker._running()
        os.kill(process.pid, signum)
        assert worker.complaint(CHATML, QUESTION, {}) is None
        assert worker._process is not process
    running = worker._running

    def stopped() -> Any:
        process = running()
        os.kill(process.pid, signal.SIGSTOP)
        return process

    monkeypatch.setattr(worker, "_running", stopped)
    assert worker.complaint(CHATML, QUESTION, {}) == "has not ended after 1 s on the clock, twice"
    assert worker._process is None


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/false"])
def test_a_worker_that_does_not_start_is_not_the_templates_fault(monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    worker = TemplateWorker()
    monkeypatch.setattr(chat_templates, "worker", lambda: worker)
    monkeypatch.setattr(template_worker.sys, "executable", python)
    with pytest.raises(RlifError, match=r"^the process that tries chat templates cannot be started \(") as raised:
        with_template(CHATML).encode_messages(QUESTION)
    assert "refuses" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_limits_of_every_day_are_generous(quick_worker: TemplateWorker) -> None:
    assert template_worker.TIME_LIMIT >= 5.0
    long = [{"role": "user", "content": "what is " + "1+" * 200_000}]
    assert quick_worker.complaint(CHATML, long, {"add_generation_prompt": True}) is None


@pytest.mark.parametrize("template", [CHATML, GENERATION])
@pytest.mark.parametrize("messages", [QUESTION, WITH_SYSTEM, TALK], ids=["question", "system", "talk"])
def test_the_text_is_that_of_transformers(template: str, messages: Any) -> None:
    policy = with_template(template)
    expected = policy.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert policy.encode_messages(messages)[0] == expected


@pytest.mark.parametrize("template", [CHATML, GENERATION, USER_ONLY, "{{ messages | tojson }}{{ strftime_now('%Y') }}"])
def test_the_worker_makes_what_transformers_makes(template: str) -> None:
    """As many characters, that is: what it answers. Otherwise it would judge another text than is made."""
    tokenizer = with_template(template).tokenizer
    for messages in (QUESTION, WITH_SYSTEM, TALK):
        variables = {"tools": None, "documents": None, **tokenizer.special_tokens_map, "add_generation_prompt": True}
        found = template_worker._answer(template_worker._compiler(), template, messages, variables)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert found == {"length": len(text)}


def test_a_system_message_that_is_dropped_moves_to_the_user() -> None:
    policy = with_template(USER_ONLY)
    with pytest.warns(
        UserWarning, match="the chat template of toy llama drops the system message; it is put in front of"
    ):
        text, ids = policy.encode_messages(WITH_SYSTEM)
    assert text == "answer in a box\n\nwhat is 1+1?\n"
    assert ids == policy.encode_text(text)[1]
    assert policy.encode_messages(QUESTION)[0] == "what is 1+1?\n"  # nothing to move, nothing to say


def test_it_is_said_once(recwarn: pytest.WarningsRecorder) -> None:
    policy = with_template(USER_ONLY)
    with warnings.catch_warnings(record=True) as said:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for _ in range(3):
            policy.encode_messages(WITH_SYSTEM)
    assert len(said) == 1


@pytest.mark.filterwarnings("ignore:the chat template")
@pytest.mark.parametrize("template", [name for name, one in TEMPLATES.items() if one.system])
def test_no_template_of_ours_loses_its_instruction(template: str) -> None:
    messages = render_messages(template, "what is 1+1?")
    for chat in (CHATML, USER_ONLY):
        text = with_template(chat).encode_messages(messages)[0]
        assert r"put your final answer within \boxed{}." in text
        assert text.index("boxed") < text.index("what is 1+1?")


def test_worked_examples_that_are_dropped_are_no_small_matter() -> None:
    assert "drops or rewrites the user message" in complaint(LAST_ONLY, TALK)


def test_white_space_around_a_message_may_go() -> None:
    text = with_template(GENERATION).encode_messages([{"role": "user", "content": " what\n\n"}])[0]
    assert text == "what<eos>"


def test_templates_without_a_default_are_told_when_a_model_is_loaded(tmp_path: Path) -> None:
    policy = with_template({"tool_use": CHATML, "rag": CHATML})
    policy.save(tmp_path)
    with pytest.raises(RlifError, match=r"^chat_template: .+ no default among them; set it to off$"):
        load_policy(PolicyConfig(model=str(tmp_path), device="cpu"))
    assert not load_policy(PolicyConfig(model=str(tmp_path), device="cpu", chat_template="off")).chat_template


def test_a_default_among_several_is_taken(tmp_path: Path) -> None:
    policy = with_template({"default": CHATML, "rag": LOOP})
    policy.save(tmp_path)
    loaded = load_policy(PolicyConfig(model=str(tmp_path), device="cpu"))
    assert loaded.encode_messages(QUESTION)[0].startswith("<|im_start|>user\nwhat is 1+1?")
