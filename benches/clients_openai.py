"""The official OpenAI client, and others if they are installed, against a server of ours.

    clients_openai.py --url http://127.0.0.1:8080/v1 [--key KEY]

The server is `cargo run -p breakers-serve --features batches --example scripted -- 127.0.0.1:8080 "" FOLDER`, whose answers are known. Prints a line for each check and ends
with an error at the first that fails. Needs `openai`; `instructor`, `litellm` and `langchain-openai` are used if they are there.
"""

import argparse
import asyncio
import importlib.util
import json
import sys
import time

import openai
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


TOOL = {
    "type": "function",
    "function": {
        "name": "person",
        "description": "Notes a person",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
ARGUMENTS = '{"name": "Ann", "age": 7}'


def say(text):
    return [{"role": "user", "content": text}]


def official(url, key):
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    chat = client.chat.completions

    yield "models"
    ids = [model.id for model in client.models.list()]
    assert ids == ["scripted", "counts"], ids
    assert client.models.retrieve("scripted").object == "model"

    yield "whole answer"
    answer = chat.create(model="scripted", messages=say("one two three"))
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens == 3
    assert answer._request_id.startswith("req_")

    yield "stream with usage"
    chunks = list(chat.create(model="scripted", messages=say("one two three"), stream=True,
                              stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "one two three" and chunks[-1].usage.total_tokens == 8 and chunks[-1].choices == []

    yield "n = 3 through the stream helper, with log-probabilities"
    with chat.stream(model="scripted", messages=say("one two three"), n=3, logprobs=True, top_logprobs=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["one two three"] * 3
    assert [len(choice.logprobs.content) for choice in final.choices] == [3, 3, 3]
    assert {"content.delta", "content.done", "logprobs.content.delta"} <= kinds, kinds

    yield "parallel calls, streamed and whole"
    request = dict(model="scripted", messages=say("note"), tools=[TOOL], parallel_tool_calls=True)
    calls = chat.create(**request).choices[0].message.tool_calls
    assert [(call.id, call.function.arguments) for call in calls] == [("call_1", ARGUMENTS), ("call_2", ARGUMENTS)]
    with chat.stream(**request) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content in (None, "")
    assert [call.function.arguments for call in choice.message.tool_calls] == [ARGUMENTS] * 2
    messages = say("note") + [choice.message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "result"} for call in choice.message.tool_calls]
    assert chat.create(model="scripted", messages=messages, tools=[TOOL]).choices[0].message.content == "result"

    yield "parsed answers and functions"
    parsed = chat.parse(model="scripted", messages=say("who?"), response_format=Person)
    assert parsed.choices[0].message.parsed == Person(name="Ann", age=7)
    parsed = chat.parse(model="scripted", messages=say("who?"), tools=[openai.pydantic_function_tool(Person)])
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == Person(name="Ann", age=7)

    yield "texts"
    answer = client.completions.create(model="scripted", prompt=["a", "b"], n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["atext", "atext", "btext", "btext"]
    chunks = list(client.completions.create(model="scripted", prompt=[1, 2], stream=True, logprobs=1))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "text"

    yield "vectors, as floats and as the client's default base64"
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = client.embeddings.create(model="counts", input=["one", "one two"], **options)
        assert answer.usage.prompt_tokens == 3
        if options.get("encoding_format") != "base64":
            assert [one.embedding for one in answer.data] == [[3.0, 1.0, 1.0], [7.0, 2.0, 1.0]]

    if hasattr(client, "responses"):
        yield "responses: whole, one after the other, kept and deleted"
        responses = client.responses
        first = responses.create(model="scripted", input="one two three", instructions="Repeat.", metadata={"k": "v"})
        assert (first.output_text, first.status, first.usage.output_tokens) == ("one two three", "completed", 3)
        second = responses.create(model="scripted", input="four", previous_response_id=first.id)
        assert second.output_text == "four" and responses.retrieve(second.id).output_text == "four"
        responses.delete(second.id)
        unkept = responses.create(model="scripted", input="one", store=False)
        for id_ in (second.id, unkept.id):
            try:
                responses.retrieve(id_)
            except openai.NotFoundError:
                pass
            else:
                raise AssertionError("a response is kept that should be gone")

        yield "responses: streamed by events and by the helper"
        kinds = [event.type for event in responses.create(model="scripted", input="one two", stream=True)]
        assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed", kinds
        with responses.stream(model="scripted", input="one two three") as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            assert text == stream.get_final_response().output_text == "one two three"

        yield "responses: functions, parsed answers"
        tool = dict(type="function", **TOOL["function"])
        asked = responses.create(model="scripted", input="note", tools=[tool], parallel_tool_calls=True)
        assert [(item.call_id, item.arguments) for item in asked.output] == [("call_1", ARGUMENTS), ("call_2", ARGUMENTS)]
        outputs = [dict(type="function_call_output", call_id=item.call_id, output="result") for item in asked.output]
        told = responses.create(model="scripted", input=outputs, tools=[tool], previous_response_id=asked.id)
        assert told.output_text == "result"
        with responses.stream(model="scripted", input="note", tools=[tool]) as stream:
            done = [event.arguments for event in stream if event.type == "response.function_call_arguments.done"]
        assert done == [ARGUMENTS]
        assert responses.parse(model="scripted", input="who?", text_format=Person).output_parsed == Person(name="Ann", age=7)
        with responses.stream(model="scripted", input="who?", text_format=Person) as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().output_parsed == Person(name="Ann", age=7)

        yield "responses: errors"
        for error, options in [(openai.BadRequestError, {"background": True}), (openai.NotFoundError, {"model": "none"}),
                               (openai.BadRequestError, {"previous_response_id": "resp_none"})]:
            try:
                responses.create(**{"model": "scripted", "input": "x", **options})
            except error as found:
                assert found.body["param"] in ("background", "model", "previous_response_id"), found.body
            else:
                raise AssertionError(f"no {error.__name__}")
    yield "files and batches"
    lines = [{"custom_id": name, "method": "POST", "url": "/v1/chat/completions",
              "body": {"model": "scripted", "messages": say(name)}} for name in ["one two", "break", "three"]]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    assert file.purpose == "batch" and client.files.wait_for_processing(file.id).bytes == len(content)
    assert client.files.content(file.id).read() == content
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                  metadata={"name": "test"})
    for _ in range(200):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed"):
            break
        time.sleep(0.1)
    counts = batch.request_counts
    assert batch.status == "completed" and (counts.total, counts.completed, counts.failed) == (3, 2, 1), batch
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in results]
    assert [line["custom_id"] for line in results] == texts == ["one two", "three"]
    failed = json.loads(client.files.content(batch.error_file_id).text)
    assert failed["custom_id"] == "break" and failed["response"]["status_code"] == 500
    assert batch.id in [one.id for one in client.batches.list(limit=1)]
    assert {one.id for one in client.files.list(limit=2)} >= {file.id, batch.output_file_id, batch.error_file_id}
    try:
        client.batches.cancel(batch.id)
    except openai.ConflictError:
        pass
    else:
        raise AssertionError("a batch that has ended was cancelled")
    assert client.files.delete(file.id).deleted
    wrong = client.files.create(file=("x.jsonl", b"{"), purpose="batch")
    batch = client.batches.create(input_file_id=wrong.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status == "validating":
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "failed" and batch.errors.data[0].line == 1, batch

    yield "errors by class"
    for error, call in [
        (openai.NotFoundError, lambda: chat.create(model="none", messages=say("x"))),
        (openai.BadRequestError, lambda: chat.create(model="scripted", messages=[])),
        (openai.BadRequestError, lambda: chat.create(model="scripted", messages=say("x"), temperature=3)),
        (openai.InternalServerError, lambda: chat.create(model="scripted", messages=say("busy"))),
        (openai.APIError, lambda: list(chat.create(model="scripted", messages=say("break"), stream=True))),
    ]:
        try:
            call()
        except error as found:
            assert found.body["message"], found
        else:
            raise AssertionError(f"no {error.__name__}")
    try:
        chat.parse(model="scripted", messages=say("who is it now?"), max_tokens=1)
    except openai.LengthFinishReasonError:
        pass
    else:
        raise AssertionError("an answer that is cut off was parsed")

    yield "a stream that is closed early"
    stream = chat.create(model="scripted", messages=say("word " * 2000), stream=True)
    next(iter(stream))
    stream.close()
    assert chat.create(model="scripted", messages=say("still there")).choices[0].message.content == "still there"

    yield "50 requests at a time"
    fast = openai.AsyncOpenAI(base_url=url, api_key=key)

    async def many():
        texts = [f"number {i}" for i in range(50)]
        answers = [fast.chat.completions.create(model="scripted", messages=say(text)) for text in texts]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*answers)] == texts

    assert asyncio.run(many())


def instructor(url, key):
    import instructor

    yield "a person by functions and by a schema"
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON):
        client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=key), mode=mode)
        person = client.chat.completions.create(model="scripted", messages=say("who?"), response_model=Person)
        assert person.model_dump() == {"name": "Ann", "age": 7}, person


def litellm(url, key):
    import litellm

    yield "whole and streamed"
    request = dict(model="openai/scripted", api_base=url, api_key=key, messages=say("one two three"))
    assert litellm.completion(**request).choices[0].message.content == "one two three"
    chunks = litellm.completion(**request, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"


def langchain_openai(url, key):
    from langchain_openai import ChatOpenAI

    yield "invoke, stream, schema"
    model = ChatOpenAI(model="scripted", base_url=url, api_key=key)
    assert model.invoke("one two three").content == "one two three"
    assert "".join(chunk.content for chunk in model.stream("one two three")) == "one two three"
    assert model.with_structured_output(Person).invoke("who?") == Person(name="Ann", age=7)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--key", default="none")
    arguments = parser.parse_args()
    for name, checks in [("openai", official), ("instructor", instructor), ("litellm", litellm),
                         ("langchain_openai", langchain_openai)]:
        if importlib.util.find_spec(name) is None:
            print(f"{name}: skipped, it is not installed")
            continue
        for check in checks(arguments.url, arguments.key):
            print(f"{name}: {check}", flush=True)
    print("all passed")


if __name__ == "__main__":
    sys.exit(main())
