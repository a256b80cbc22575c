"""Libraries above OpenAI's client against a server of ours: those that are installed.

    clients_frameworks.py --url http://127.0.0.1:8080/v1 [--key KEY] [--need NAME …]

The server is that of `clients_openai.py`. Prints a line for each check and ends with an error at the first that fails, or if a
library of `--need` is not there. Knows `instructor`, `litellm`, `langchain-openai`, `openai-agents` and `pydantic-ai`.
"""

import argparse
import asyncio
import importlib.metadata
import os
import sys

import openai
from pydantic import BaseModel

# Nobody is to be asked but the server.
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_TELEMETRY="False", OPENAI_AGENTS_DISABLE_TRACING="1",
                  LANGSMITH_TRACING="false")


class Person(BaseModel):
    name: str
    age: int


ANN = Person(name="Ann", age=7)


def say(text):
    return [{"role": "user", "content": text}]


def instructor(url, key):
    import instructor

    yield "a person by functions and by a schema"
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=key), mode=mode)
        person = client.chat.completions.create(model="scripted", messages=say("who?"), response_model=Person)
        assert person.model_dump() == ANN.model_dump(), (mode, person)

    yield "a person that grows"
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=key))
    parts = list(client.chat.completions.create_partial(model="scripted", messages=say("who?"), response_model=Person))
    assert parts[-1].model_dump() == ANN.model_dump(), parts


def litellm(url, key):
    import litellm

    litellm.suppress_debug_info = True
    ours = dict(api_base=url, api_key=key)
    request = dict(model="openai/scripted", messages=say("one two three"), **ours)

    yield "whole and streamed, with usage"
    answer = litellm.completion(**request)
    assert answer.choices[0].message.content == "one two three" and answer.usage.completion_tokens == 3
    chunks = list(litellm.completion(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert chunks[-1].usage.total_tokens == 8, chunks[-1]
    answer = asyncio.run(litellm.acompletion(**request))
    assert answer.choices[0].message.content == "one two three"

    yield "functions, vectors, schemas"
    tool = {"type": "function", "function": {"name": "person", "parameters": Person.model_json_schema()}}
    calls = litellm.completion(model="openai/scripted", messages=say("who?"), tools=[tool], **ours).choices[0].message.tool_calls
    assert [Person.model_validate_json(call.function.arguments) for call in calls] == [ANN], calls
    vectors = litellm.embedding(model="openai/counts", input=["one", "one two"], **ours)
    assert [one["embedding"] for one in vectors.data] == [[3.0, 1.0, 1.0], [7.0, 2.0, 1.0]], vectors.data
    answer = litellm.completion(model="openai/scripted", messages=say("who?"), response_format=Person, **ours)
    assert Person.model_validate_json(answer.choices[0].message.content) == ANN

    yield "errors by class"
    for error, options in [(litellm.NotFoundError, {"model": "openai/none"}), (litellm.BadRequestError, {"temperature": 9}),
                           (litellm.APIError, {"messages": say("break")})]:
        try:
            litellm.completion(**{**request, **options}, num_retries=0, max_retries=0)
        except error:
            continue
        except Exception as other:
            # A failure of the server has a class of its own.
            assert error is litellm.APIError and isinstance(other, litellm.InternalServerError), repr(other)
            continue
        raise AssertionError(f"no {error.__name__}")


def langchain_openai(url, key):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    model = ChatOpenAI(model="scripted", base_url=url, api_key=key, max_retries=0)

    yield "invoke, stream, many at a time, usage"
    answer = model.invoke("one two three")
    assert answer.content == "one two three" and answer.usage_metadata["total_tokens"] == 8, answer
    assert "".join(chunk.content for chunk in model.stream("one two three")) == "one two three"
    assert [one.content for one in model.batch(["a", "b", "c"])] == ["a", "b", "c"]
    assert asyncio.run(model.ainvoke("one")).content == "one"

    yield "schemas, and functions with their results"
    for method in ("json_schema", "function_calling", "json_mode"):
        assert Person.model_validate(model.with_structured_output(Person, method=method).invoke("who?")) == ANN, method
    bound = model.bind_tools([Person])
    asked = bound.invoke("who?")
    assert [call["args"] for call in asked.tool_calls] == [ANN.model_dump()], asked
    results = [ToolMessage("result", tool_call_id=call["id"]) for call in asked.tool_calls]
    assert bound.invoke([HumanMessage("who?"), asked, *results]).content == "result"
    chunks = list(bound.stream("who?"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert [call["args"] for call in whole.tool_calls] == [ANN.model_dump()], whole

    yield "vectors"
    vectors = OpenAIEmbeddings(model="counts", base_url=url, api_key=key, check_embedding_ctx_length=False)
    assert vectors.embed_documents(["one", "one two"]) == [[3.0, 1.0, 1.0], [7.0, 2.0, 1.0]]

    yield "by responses"
    model = ChatOpenAI(model="scripted", base_url=url, api_key=key, use_responses_api=True)
    assert model.invoke("one two").text == "one two"
    assert "".join(chunk.text for chunk in model.stream("one two")) == "one two"


def openai_agents(url, key):
    import agents

    agents.set_tracing_disabled(True)
    @agents.function_tool
    def look_up(name: str, age: int) -> str:
        """Looks somebody up."""
        return f"result: {name} is {age}"

    for kind in (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel):
        # A client belongs to one event loop.
        new = lambda kind=kind: kind("scripted", openai.AsyncOpenAI(base_url=url, api_key=key))
        name, model = kind.__name__, new()
        yield f"{name}: text, function, schema"
        agent = agents.Agent("a", instructions="Repeat.", model=model)
        assert agents.Runner.run_sync(agent, "one two").final_output == "one two"
        agent = agents.Agent("a", model=model, tools=[look_up])
        assert agents.Runner.run_sync(agent, "who?").final_output == "result: Ann is 7"
        agent = agents.Agent("a", model=model, output_type=Person)
        assert agents.Runner.run_sync(agent, "who?").final_output == ANN

        yield f"{name}: streamed"

        async def streamed():
            agent = agents.Agent("a", model=new(), tools=[look_up])
            result = agents.Runner.run_streamed(agent, "who?")
            kinds = {event.type async for event in result.stream_events()}
            assert {"raw_response_event", "run_item_stream_event"} <= kinds, kinds
            return result.final_output

        assert asyncio.run(streamed()) == "result: Ann is 7"


def pydantic_ai(url, key):
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        # A client belongs to one event loop.
        new = lambda kind=kind: kind("scripted", provider=OpenAIProvider(base_url=url, api_key=key))
        model = new()
        yield f"{kind.__name__}: text, function, schemas"
        assert Agent(model).run_sync("one two").output == "one two"
        for output in (Person, NativeOutput(Person)):
            assert Agent(model, output_type=output).run_sync("who?").output == ANN
        agent = Agent(model)

        @agent.tool_plain
        def look_up(name: str, age: int) -> str:
            """Looks somebody up."""
            return f"result: {name} is {age}"

        assert agent.run_sync("who?").output == "result: Ann is 7"

        yield f"{kind.__name__}: streamed"

        async def streamed():
            async with Agent(new()).run_stream("one two three") as result:
                return [text async for text in result.stream_text(delta=True, debounce_by=None)]

        pieces = asyncio.run(streamed())
        assert "".join(pieces) == "one two three", pieces


LIBRARIES = {
    "instructor": instructor,
    "litellm": litellm,
    "langchain-openai": langchain_openai,
    "openai-agents": openai_agents,
    "pydantic-ai-slim": pydantic_ai,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--key", default="none")
    parser.add_argument("--need", nargs="*", default=[])
    arguments = parser.parse_args()
    for name, checks in LIBRARIES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in arguments.need:
                raise SystemExit(f"{name} is not installed")
            print(f"{name}: skipped, it is not installed")
            continue
        print(f"{name} {version}, openai {openai.__version__}")
        for check in checks(arguments.url, arguments.key):
            print(f"  {check}", flush=True)
    print("all passed")


if __name__ == "__main__":
    sys.exit(main())
