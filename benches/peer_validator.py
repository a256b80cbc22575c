"""A second validator for texts under schemas: `jsonschema` from PyPI.

    peer_validator.py TEXTS.jsonl

A line is {name, schema, texts: [JSON text]}, as the bench `maskbench` writes them with `--soak --texts FILE`. Each text is
parsed, names that come twice in an object are counted, and it is validated by the draft that its schema names (2020-12
without one), formats included where the package can. Prints what is wrong, and counts as one JSON line at the end.
"""

import json
import math
import sys

import jsonschema
from jsonschema.validators import validator_for


def distinct(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name comes twice")
    return members


def finite(text):
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is infinite")
    return number


def main():
    counts = {"schemas": 0, "unknown_schemas": 0, "texts": 0, "invalid": 0, "unreadable": 0, "failed": 0}
    sys.setrecursionlimit(10_000)
    for line in open(sys.argv[1], encoding="utf-8"):
        row = json.loads(line)
        kind = validator_for(row["schema"], default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(row["schema"])
        except jsonschema.SchemaError as error:
            counts["unknown_schemas"] += 1
            print("schema", row["name"], error.message[:100])
            continue
        validator = kind(row["schema"], format_checker=kind.FORMAT_CHECKER)
        counts["schemas"] += 1
        for text in row["texts"]:
            counts["texts"] += 1
            try:
                value = json.loads(text, object_pairs_hook=distinct, parse_float=finite)
            except ValueError as error:
                counts["unreadable"] += 1
                print("unreadable", row["name"], error, text[:200])
                continue
            try:
                error = next(validator.iter_errors(value), None)
            except Exception as failure:  # Some patterns and references are beyond the package.
                counts["failed"] += 1
                print("failed", row["name"], type(failure).__name__, str(failure)[:100])
                break
            if error is not None:
                counts["invalid"] += 1
                print("invalid", row["name"], error.message[:200], text[:400])
    print(json.dumps(counts))
    return counts["invalid"] + counts["unreadable"] > 0


if __name__ == "__main__":
    sys.exit(main())
