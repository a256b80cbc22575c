"""Writes odd_files.json: what llama.cpp makes of the files of tests/suite/odd_files.rs.

For each file the log-probabilities of all tokens behind the test's prompt, or what llama.cpp says when it refuses it. Needs
`pip install xllamacpp` (llama.cpp in a wheel); the test writes the files:
    BREAKERS_ODD_FILES=FOLDER cargo test -p breakers-model --test suite -- --ignored write_odd_files
    python make_odd_files.py FOLDER > odd_files.json
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

PROMPT = [3, 17, 4, 9, 30, 26, 8, 8, 21, 0, 14, 5]
N_TOKENS = 32


def one(path, result):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 64
    params.n_parallel = 1
    params.warmup = False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    request = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": N_TOKENS, "cache_prompt": False}
    answer = server.handle_completions(request)
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    logprobs = {token["id"]: round(token["logprob"], 4) for token in top}
    pathlib.Path(result).write_text(json.dumps([logprobs.get(id) for id in range(N_TOKENS)]))


def reason(log):
    """The last complaint of a log."""
    found = re.findall(r"error loading model: (.*)|(GGML_ASSERT.*)|chat_templates_init: (error.*)", log)
    return next(filter(None, found[-1])) if found else "ends without a word"


def main():
    if len(sys.argv) == 4:
        return one(*sys.argv[2:])
    verdicts = {}
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.gguf")):
        # Each in a process of its own: some files end it. Its output is a log.
        with tempfile.TemporaryDirectory() as folder:
            result = pathlib.Path(folder) / "result"
            command = [sys.executable, __file__, "one", str(path), str(result)]
            run = subprocess.run(command, capture_output=True, timeout=120)
            log = (run.stdout + run.stderr).decode(errors="replace")
            verdicts[path.stem] = json.loads(result.read_text()) if result.exists() else reason(log)
    print("{")
    print(",\n".join(f"{json.dumps(name)}: {json.dumps(verdict)}" for name, verdict in verdicts.items()))
    print("}")


main()
