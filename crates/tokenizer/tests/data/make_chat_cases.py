"""Writes chat_cases.json: conversations and the prompts that Jinja2 makes of them.

The environment is the one that huggingface/transformers gives to chat templates. Needs `pip install jinja2 llama-cpp-python`; the
templates of models come from their files, which lie in a folder as <name>.gguf:
    python make_chat_cases.py FOLDER > chat_cases.json
"""

import json
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox
import llama_cpp

MODELS = ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]

# Templates of our own, each for something that templates in use do.
OWN = {
    "whitespace": """
{%- set system = 'none' %}
    {% if messages[0].role == 'system' %}
    {% set system = messages[0].content | trim %}
    {% endif %}
[{{ system }}]
{# a comment #}
  {%- for message in messages %}
    {{ loop.index0 }} {{- message['role'] -}} : {{ message.content | trim }}
  {%- if not loop.last %}|{% endif %}

  {% endfor %}
end
""",
    "python_strings": """{% for m in messages %}{% if m.content.startswith('Hi') %}H{% endif %}{{ m.content.strip() }}/{{ m.content.split(' ')[-1] }}/{{ m.content.upper() }}/{{ m.role.title() }}/{{ m.content.replace('a', 'b') }}/{{ m.content.lstrip('H') }}/{{ m.content[:3] }}/{{ m.content | length }}/{{ m.get('name', 'anon') }}
{% endfor %}{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}""",
    "namespace": """{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% if m.role == 'assistant' %}{% set ns.found = true %}{% break %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }} {{ none }} {{ 1.0 }} {{ [1, 'a', none, true] }} {{ {'k': "it's"} }}""",
    "json": """{{ tools | tojson }}
{{ tools | tojson(indent=2) }}
{{ tools | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}""",
    "undefined": """{{ bos_token }}{{ nothing }}{% if nothing is defined %}x{% endif %}{% if tools is not none %}t{% endif %}{% if tools %}T{% endif %}{{ messages[0].nothing }}{{ eos_token }}""",
    "macro": """{% macro turn(m) %}<{{ m.role }}>{{ caller() if caller else m.content }}</{{ m.role }}>{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages[::-1][0].role }} {{ (messages | last).content }} {{ 'a' ~ 1 ~ none }} {{ 'x' if false }}""",
    "refusal": """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate: ' + m.role) }}{% endif %}{{ m.content }}{% endfor %}""",
    "date": """Today: {{ strftime_now('%d %b %Y') }} {{ strftime_now("%Y-%m-%d %H:%M:%S %A %j") }}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}""",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather <now> & "here", it\'s °C\n',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}, "days": {"type": "integer", "default": 3}},
                "required": ["city"],
            },
        },
    },
    {"name": "empty", "parameters": {}, "list": [], "numbers": [0, -1, 1.5, 1e20, 1e-7, True, None]},
]

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 1}}}

CHATS = [
    [{"role": "user", "content": "Hi there, a cat"}],
    [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello <b>&'\"</b>"}, {"role": "user", "content": " naïve 世界 😀\n"}],
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, {"name": "empty", "arguments": {}}]},
        {"role": "tool", "content": "12 °C", "name": "get_weather"},
        {"role": "tool", "content": "{}"},
        {"role": "assistant", "content": "Twelve."},
        {"role": "user", "content": "Thanks"},
    ],
    [{"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}],
]


class Refused(Exception):
    pass


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise Refused(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    # The test sets the clock to 2025-01-04 14:13:20 UTC.
    import datetime

    now = datetime.datetime(2025, 1, 4, 14, 13, 20)
    env.globals["strftime_now"] = lambda format: now.strftime(format)
    return env


def main():
    templates = {}
    for name in MODELS:
        llama = llama_cpp.Llama(f"{sys.argv[1]}/{name}.gguf", vocab_only=True, verbose=False)
        vocab = llama_cpp.llama_model_get_vocab(llama.model)
        text = lambda key: llama_cpp.llama_vocab_get_text(vocab, int(llama.metadata[key])).decode()
        templates[name] = {
            "source": llama.metadata["tokenizer.chat_template"],
            "bos_token": text("tokenizer.ggml.bos_token_id"),
            "eos_token": text("tokenizer.ggml.eos_token_id"),
        }
    templates |= {name: {"source": source, "bos_token": "<s>"} for name, source in OWN.items()}
    cases = []
    for name, template in templates.items():
        # Marks what training counts; `transformers` prints what is between the tags.
        source = template["source"].replace("{% generation %}", "").replace("{% endgeneration %}", "")
        compiled = environment().from_string(source)
        tokens = {key: template[key] for key in ("bos_token", "eos_token") if key in template}
        for chat_idx, messages in enumerate(CHATS):
            for tools in [None, TOOLS]:
                for add_generation_prompt in [False, True]:
                    if add_generation_prompt and (name in OWN or chat_idx == 2):
                        continue
                    case = {"template": name, "chat": chat_idx, "tools": tools is not None, "add_generation_prompt": add_generation_prompt}
                    try:
                        case["text"] = compiled.render(messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **tokens)
                    except Refused as refused:
                        case["refused"] = str(refused)
                    except jinja2.exceptions.TemplateError:
                        case["fails"] = True
                    if case not in cases:
                        cases.append(case)
    # Keys in the order of the conversation, as a JSON text each, so that a reader cannot lose it.
    texts = {"tools": json.dumps(TOOLS), "chats": [[{k: json.dumps(v) for k, v in m.items()} for m in chat] for chat in CHATS]}
    json.dump({"templates": templates, **texts, "cases": cases}, sys.stdout, indent=0)
    print()


if __name__ == "__main__":
    main()
