"""The openai package, as it comes from PyPI, against the gateway: plain and streamed, sync and async.

Runs with the Python that GPTOSS_TEST_OPENAI_PYTHON names, or the one that runs this; skipped where neither
has the package."""
import asyncio
import json
import os
import sys

try:
    import openai
except ImportError:
    other = os.environ.get("GPTOSS_TEST_OPENAI_PYTHON")
    if not other or os.environ.get("GPTOSS_TEST_OPENAI_TRIED"):
        print("skipped: no Python here has the openai package (pip install openai, and name that Python in "
              "GPTOSS_TEST_OPENAI_PYTHON)")
        sys.exit(77)
    os.environ["GPTOSS_TEST_OPENAI_TRIED"] = "1"
    os.execv(other, [other, *sys.argv])

from gateway_harness import ANSWER, QUESTION, THOUGHT, Stack, run_tests, tools

MODEL = "gptoss-tiny-mxfp4"
WEATHER = "What is the weather in Paris?"
stack = None


def client(kind=openai.OpenAI, **more):
    return kind(base_url=stack.url, api_key="none", max_retries=0, timeout=60, **more)


def asked(content=QUESTION, **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, **more}


def flat_tools():
    return [{"type": "function", "strict": False, **t["function"]} for t in tools()]


def gather(chunks):
    """What the chunks of a chat stream make: content, reasoning, calls, finish reason, usage."""
    content, reasoning, calls, finish, usage = "", "", {}, None, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                known = calls.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                known["arguments"] += call.function.arguments or ""
            finish = choice.finish_reason or finish
    return content, reasoning, calls, finish, usage


def test_chat():
    c = client()
    assert [m.id for m in c.models.list()] == [MODEL] and c.models.retrieve(MODEL).id == MODEL
    r = c.chat.completions.create(**asked())
    assert r.choices[0].message.content == ANSWER and r.choices[0].finish_reason == "stop"
    assert r.choices[0].message.reasoning_content == THOUGHT
    assert r.usage.completion_tokens_details.reasoning_tokens == 17 and r.usage.total_tokens == 95
    content, reasoning, _, finish, usage = gather(
        c.chat.completions.create(**asked(stream=True, stream_options={"include_usage": True})))
    assert (content, reasoning, finish) == (ANSWER, THOUGHT, "stop")
    assert usage.completion_tokens == 30 and usage.prompt_tokens_details.cached_tokens > 0, usage
    with c.chat.completions.stream(**asked()) as stream:  # the package's own gathering
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def test_parameters():
    c = client()
    r = c.chat.completions.create(model=MODEL, temperature=0, reasoning_effort="low", max_completion_tokens=100, messages=[
        {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]}, {"role": "assistant", "content": "Athens."},
        {"role": "user", "content": "Are you sure?"}])
    assert r.choices[0].finish_reason in ("stop", "length")
    r = c.chat.completions.create(**asked(stop=[" Greece"]))
    assert r.choices[0].finish_reason == "stop" and not (r.choices[0].message.content or "").endswith("Athens."), r
    seeded = [c.completions.create(model=MODEL, prompt="The house of", seed=s, temperature=1.5, top_p=0.95,
                                   max_tokens=30).choices[0].text for s in (7, 7, 8)]
    assert seeded[0] == seeded[1] != seeded[2], seeded
    assert c.chat.completions.create(**asked(max_tokens=3)).choices[0].finish_reason == "length"
    r = c.completions.create(model=MODEL, prompt="The house of", n=3, seed=1, temperature=1.5, max_tokens=20)
    texts = [x.text for x in sorted(r.choices, key=lambda x: x.index)]
    assert len(set(texts)) == 3 and r.usage.completion_tokens == 60, texts
    streamed = ["", "", ""]
    for chunk in c.completions.create(model=MODEL, prompt="The house of", n=3, seed=1, temperature=1.5, max_tokens=20,
                                      stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts
    r = c.completions.create(model=MODEL, prompt=["The house of", "And God"], max_tokens=5, temperature=0)
    assert [x.index for x in r.choices] == [0, 1] and r.choices[0].text != r.choices[1].text


def test_log_probabilities():
    c = client()
    whole = c.chat.completions.create(**asked(logprobs=True, top_logprobs=3)).choices[0].logprobs.content
    assert "".join(t.token for t in whole) == ANSWER, whole
    assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 and bytes(t.bytes).decode() == t.token for t in whole)
    assert all(t.top_logprobs[0].token == t.token for t in whole), "the best token was taken"
    streamed = []
    for chunk in c.chat.completions.create(**asked(logprobs=True, top_logprobs=3, stream=True)):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == whole
    r = c.completions.create(model=MODEL, prompt="In the beginning", temperature=0, max_tokens=6, logprobs=2).choices[0]
    assert "".join(r.logprobs.tokens) == r.text and len(r.logprobs.top_logprobs[0]) == 2, r
    assert r.logprobs.text_offset[1] == len(r.logprobs.tokens[0])
    r = c.responses.create(model=MODEL, input=QUESTION, temperature=0, include=["message.output_text.logprobs"], top_logprobs=2)
    assert "".join(t.token for t in r.output[-1].content[0].logprobs) == ANSWER


def test_a_tool_is_called_and_its_result_read():
    c = client()
    for effort in ("low", "medium"):
        r = c.chat.completions.create(**asked(WEATHER, tools=tools(), reasoning_effort=effort)).choices[0]
        content, reasoning, calls, finish, _ = gather(
            c.chat.completions.create(**asked(WEATHER, tools=tools(), reasoning_effort=effort, stream=True)))
        call = r.message.tool_calls[0]
        assert r.finish_reason == finish == "tool_calls" and call.function.name == calls[0]["name"] == "get_weather"
        assert json.loads(call.function.arguments) == json.loads(calls[0]["arguments"]) == {"city": "Paris"}
        messages = asked(WEATHER)["messages"] + [r.message, {"role": "tool", "tool_call_id": call.id, "content": "21 C"}]
        answer = c.chat.completions.create(**{**asked(tools=tools()), "messages": messages}).choices[0]
        assert answer.message.content or answer.message.tool_calls, answer
    for choice, called in (("required", True), ("none", False), ("auto", True),
                           ({"type": "function", "function": {"name": "get_weather"}}, True)):
        r = c.chat.completions.create(**asked(WEATHER, tools=tools(), tool_choice=choice)).choices[0]
        assert bool(r.message.tool_calls) == called, (choice, r)


def test_responses():
    c = client()
    r = c.responses.create(model=MODEL, input=QUESTION, temperature=0, metadata={"a": "b"})
    assert r.output_text == ANSWER and r.status == "completed" and r.metadata == {"a": "b"}
    assert [o.type for o in r.output] == ["reasoning", "message"] and r.output[0].content[0].text == THOUGHT
    assert r.usage.output_tokens_details.reasoning_tokens == 17 and r.usage.total_tokens == 95
    kinds = []
    with c.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        for event in stream:
            kinds += [event.type] if not kinds or kinds[-1] != event.type else []
        final = stream.get_final_response()
    assert final.output_text == ANSWER and final.output[0].content[0].text == THOUGHT
    message = ["response.output_item.added", "response.content_part.added", "response.{}.delta", "response.{}.done",
               "response.content_part.done", "response.output_item.done"]
    assert kinds == (["response.created", "response.in_progress"] + [m.format("reasoning_text") for m in message] +
                     [m.format("output_text") for m in message] + ["response.completed"]), kinds
    r = c.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20)
    assert r.status == "incomplete" and r.incomplete_details.reason == "max_output_tokens"
    said = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
            {"role": "user", "content": [{"type": "input_text", "text": "Are you sure?"}]}]
    assert c.responses.create(model=MODEL, input=said, instructions="Answer.", reasoning={"effort": "low"},
                              temperature=0, max_output_tokens=50).output


def test_responses_with_tools():
    c = client()
    r = c.responses.create(model=MODEL, input=WEATHER, tools=flat_tools(), temperature=0)
    call = r.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris"}, r.output
    with c.responses.stream(model=MODEL, input=WEATHER, tools=flat_tools(), temperature=0,
                            tool_choice={"type": "function", "name": "get_weather"}) as stream:
        deltas = "".join(e.delta for e in stream if e.type == "response.function_call_arguments.delta")
        final = stream.get_final_response().output[-1]
    assert deltas == final.arguments == call.arguments, (deltas, final)
    said = [{"role": "user", "content": WEATHER}, *[o.model_dump(exclude_none=True) for o in r.output],
            {"type": "function_call_output", "call_id": call.call_id, "output": "21 C"}]
    assert c.responses.create(model=MODEL, input=said, tools=flat_tools(), temperature=0).output


def test_what_is_wrong_raises_what_the_package_knows():
    c = client()
    for kind, options in ((openai.BadRequestError, asked(frequency_penalty=1)), (openai.NotFoundError, asked(model="gpt-4")),
                          (openai.BadRequestError, asked(stream=True, extra_body={"nonsense": 1}))):
        try:
            c.chat.completions.create(**options)
            raise AssertionError(f"{options} was taken")
        except kind as error:
            assert error.param and error.message, error


def test_async():
    async def run():
        async with client(openai.AsyncOpenAI) as c:
            async def plain():
                return (await c.chat.completions.create(**asked())).choices[0].message.content

            async def streamed():
                chunks = [chunk async for chunk in await c.chat.completions.create(**asked(stream=True))]
                return gather(chunks)[0]

            async def response():
                async with c.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
                    async for _ in stream:
                        pass
                    return (await stream.get_final_response()).output_text

            async def called():
                r = await c.chat.completions.create(**asked(WEATHER, tools=tools()))
                return ANSWER if r.choices[0].finish_reason == "tool_calls" else r
            return await asyncio.gather(*(f() for f in (plain, streamed, response, called) for _ in range(8)))
    assert asyncio.run(run()) == [ANSWER] * 32


if __name__ == "__main__":
    with Stack(2) as stack:
        run_tests(sys.modules[__name__])
