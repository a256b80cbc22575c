"""OpenAI's own client against a server of ours.

    clients_openai.py --url http://127.0.0.1:8080/v1 [--key KEY]

The server is `cargo run -p breakers-serve --features batches --example scripted -- 127.0.0.1:8080 KEY FOLDER`, whose answers are
known; an empty KEY is none. `cargo xtask serving` does all of it. Prints a line for each check and ends with an error at the
first that fails. Needs `openai`, of any version from 1.100.
"""

import argparse
import asyncio
import base64
import json
import re
import struct
import sys
import time
import urllib.request

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


def raises(error, call):
    """The error that a call must end with."""
    try:
        call()
    except error as found:
        return found
    raise AssertionError(f"no {error.__name__}")


def counted(url, key, name):
    """The sum of a metric's values."""
    request = urllib.request.Request(url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as answer:
        lines = re.findall(rf"^breakers_{name}(?:{{.*}})? (\S+)$", answer.read().decode(), re.MULTILINE)
    return sum(float(value) for value in lines)


def chats(url, key):
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
    assert answer.choices[0].message.refusal is None and answer.choices[0].logprobs is None
    three = chat.create(model="scripted", messages=say("one"), n=3, user="u", metadata={"a": "b"}, stop=["x", "y"])
    assert [(one.index, one.message.content) for one in three.choices] == [(0, "one"), (1, "one"), (2, "one")]

    yield "log-probabilities"
    answer = chat.create(model="scripted", messages=say("one two"), logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert [(token.token, token.logprob, bytes(token.bytes)) for token in tokens] == [
        ("one ", -0.5, b"one "), ("two", -0.5, b"two")], tokens
    assert [[top.token for top in token.top_logprobs] for token in tokens] == [["a", "b", "c"]] * 2

    yield "headers, raw answers"
    raw = chat.with_raw_response.create(model="scripted", messages=say("one"), user="u",
                                        extra_headers={"x-request-id": "mine", "x-other": "1"}, extra_body={"other": [1]})
    assert raw.headers["x-breakers-ignored"] == "user" and raw.headers["x-request-id"], raw.headers
    assert raw.parse().choices[0].message.content == "one"
    named = openai.OpenAI(base_url=url, api_key=key, organization="o", project="p", default_headers={"x-a": "b"})
    assert named.chat.completions.create(model="scripted", messages=say("one")).choices[0].message.content == "one"
    with chat.with_streaming_response.create(model="scripted", messages=say("one two")) as raw:
        assert json.loads(raw.read())["choices"][0]["message"]["content"] == "one two"

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
        vectors = [one.embedding for one in answer.data]
        if options.get("encoding_format") == "base64":
            vectors = [list(struct.unpack("<3f", base64.b64decode(one))) for one in vectors]
        assert vectors == [[3.0, 1.0, 1.0], [7.0, 2.0, 1.0]], vectors


def responses(url, key):
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
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


def batches(url, key):
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)

    yield "files and batches"
    lines = [{"custom_id": name, "method": "POST", "url": "/v1/chat/completions",
              "body": {"model": "scripted", "messages": say(name)}} for name in ["one two", "break", "three"]]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    assert file.purpose == "batch" and client.files.wait_for_processing(file.id).bytes == len(content)
    assert client.files.content(file.id).read() == content
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                  metadata={"name": "test"})
    batch = ended(client, batch)
    counts = batch.request_counts
    assert batch.status == "completed" and (counts.total, counts.completed, counts.failed) == (3, 2, 1), batch
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in results]
    assert [line["custom_id"] for line in results] == texts == ["one two", "three"]
    failed = json.loads(client.files.content(batch.error_file_id).text)
    assert failed["custom_id"] == "break" and failed["response"]["status_code"] == 500
    assert batch.id in [one.id for one in client.batches.list(limit=1)]
    assert {one.id for one in client.files.list(limit=2)} >= {file.id, batch.output_file_id, batch.error_file_id}
    raises(openai.ConflictError, lambda: client.batches.cancel(batch.id))
    assert client.files.delete(file.id).deleted
    wrong = client.files.create(file=("x.jsonl", b"{"), purpose="batch")
    batch = client.batches.create(input_file_id=wrong.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = ended(client, batch)
    assert batch.status == "failed" and batch.errors.data[0].line == 1, batch

    yield "batches of texts and vectors, lists page by page, batches that are sent again"
    for endpoint, body in [("/v1/completions", {"model": "scripted", "prompt": "x"}),
                           ("/v1/embeddings", {"model": "counts", "input": ["one", "one two"]})]:
        line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
        file = client.files.create(file=("requests.jsonl", json.dumps(line).encode()), purpose="batch",
                                   expires_after={"anchor": "created_at", "seconds": 3600})
        made = dict(input_file_id=file.id, endpoint=endpoint, completion_window="24h",
                    extra_headers={"idempotency-key": file.id})
        batch = client.batches.create(**made)
        assert client.batches.create(**made).id == batch.id, "sent again, it is the same"
        batch = ended(client, batch)
        result = json.loads(client.files.content(batch.output_file_id).text)["response"]["body"]
        if endpoint == "/v1/embeddings":
            assert [one["embedding"] for one in result["data"]] == [[3.0, 1.0, 1.0], [7.0, 2.0, 1.0]], result
        else:
            assert result["choices"][0]["text"] == "text", result
    # The client asks for page after page.
    ids = [one.id for one in client.batches.list(limit=1)]
    assert len(ids) == len(set(ids)) >= 4 and batch.id == ids[0], ids
    files = [one.id for one in client.files.list(limit=1, purpose="batch", order="asc")]
    assert len(files) == len(set(files)) >= 3, files

    yield "files and batches: errors by class"
    for call in [lambda: client.files.retrieve("file-none"), lambda: client.files.content("file-none"),
                 lambda: client.files.delete("file-none"), lambda: client.batches.retrieve("batch_none")]:
        assert raises(openai.NotFoundError, call).body["message"]
    raises(openai.BadRequestError, lambda: client.files.create(file=("x", b"{}"), purpose="assistants"))
    raises(openai.BadRequestError, lambda: client.batches.create(
        input_file_id=file.id, endpoint="/v1/moderations", completion_window="24h"))


def ended(client, batch):
    """The batch when it has ended."""
    for _ in range(400):
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    raise AssertionError(f"it does not end: {batch}")


def trouble(url, key):
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    chat = client.chat.completions

    yield "errors by class"
    if key != "none":
        wrong = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
        found = raises(openai.AuthenticationError, lambda: wrong.models.list())
        assert found.code == "invalid_api_key" and found.request_id.startswith("req_"), found.body
    for error, call in [
        (openai.NotFoundError, lambda: chat.create(model="none", messages=say("x"))),
        (openai.BadRequestError, lambda: chat.create(model="scripted", messages=[])),
        (openai.BadRequestError, lambda: chat.create(model="scripted", messages=say("x"), temperature=3)),
        (openai.BadRequestError, lambda: chat.create(model="scripted", messages=say("x"), functions=[{"name": "f"}])),
        (openai.NotFoundError, lambda: chat.create(model="counts", messages=say("x"))),
        (openai.BadRequestError, lambda: client.embeddings.create(model="scripted", input="x")),
        (openai.NotFoundError, lambda: client.models.retrieve("none")),
        (openai.NotFoundError, lambda: client.moderations.create(input="x")),
        (openai.APIStatusError, lambda: chat.create(model="scripted", messages=say("x" * 9_000_000))),
        (openai.InternalServerError, lambda: chat.create(model="scripted", messages=say("busy"))),
        (openai.APIError, lambda: list(chat.create(model="scripted", messages=say("break"), stream=True))),
    ]:
        try:
            call()
        except error as found:
            assert found.body["message"], found
        else:
            raise AssertionError(f"no {error.__name__}")
    raises(openai.LengthFinishReasonError,
           lambda: chat.parse(model="scripted", messages=say("who is it now?"), max_tokens=1))

    yield "a busy model is asked three times"
    before = counted(url, key, "requests_accepted_total")
    patient = client.with_options(max_retries=2)
    raises(openai.InternalServerError, lambda: patient.chat.completions.create(model="scripted", messages=say("busy")))
    assert counted(url, key, "requests_accepted_total") - before == 3

    yield "a client that waits no longer, or closes its stream: the text ends"
    slow = say("slowly " + "word " * 200)
    before = counted(url, key, "request_ended_total")
    raises(openai.APITimeoutError, lambda: client.with_options(timeout=0.3).chat.completions.create(
        model="scripted", messages=slow))
    stream = chat.create(model="scripted", messages=slow, stream=True)
    next(iter(stream))
    stream.close()
    # The whole answers would take eight seconds each.
    for _ in range(60):
        if counted(url, key, "request_ended_total") == before + 2:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a text that nobody waits for goes on")
    assert counted(url, key, "num_requests_running") == 0
    assert chat.create(model="scripted", messages=say("still there")).choices[0].message.content == "still there"

    yield "50 requests at a time, and a stream, by the asynchronous client"

    async def many():
        # A client belongs to one event loop.
        create = openai.AsyncOpenAI(base_url=url, api_key=key).chat.completions.create
        texts = [f"number {i}" for i in range(50)]
        answers = await asyncio.gather(*[create(model="scripted", messages=say(text)) for text in texts])
        stream = await create(model="scripted", messages=say("one two"), stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return streamed == "one two" and [answer.choices[0].message.content for answer in answers] == texts

    assert asyncio.run(many())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--key", default="none")
    arguments = parser.parse_args()
    print(f"openai {openai.__version__}")
    for checks in (chats, responses, batches, trouble):
        for check in checks(arguments.url, arguments.key):
            print(f"  {check}", flush=True)
    print("all passed")


if __name__ == "__main__":
    sys.exit(main())
