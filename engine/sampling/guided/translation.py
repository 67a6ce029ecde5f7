"""A request's grammar in the library's own format."""

import json

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from engine.sampling.guided.spec import GuidedSpec

# Without an end to it a model that likes spaces would never get to the next value. 40: pretty-printing.
_WHITESPACE = r"[ \t\n\r]{1,40}"


def translate(spec: GuidedSpec) -> str:
    """JSON that LLMatcher takes. Raises ValueError for a schema that is no JSON, and the like."""
    if spec.kind == "json_schema":
        schema = _as_object(spec.text)
        return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": _WHITESPACE})
    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(spec.text)
    if spec.kind == "grammar":
        return _lark(_from_ebnf(spec.text))
    # One terminal: thousands of choices are then one automaton, not as many items of a parser.
    choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in spec.choices)
    return _lark(f"start: CHOICE\nCHOICE: {choices}")


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _from_ebnf(text: str) -> str:
    """Lark's notation: what has `::=` is taken as that of llama.cpp, GBNF."""
    try:
        return any_to_lark(text)
    except Exception as error:  # the library has no narrower one for what it cannot read
        raise ValueError(f"not a grammar: {error}") from error


def _as_object(schema: str) -> str:
    """`true` allows every value, as `{}` does, but cannot carry options."""
    return "{}" if schema.strip() == "true" else schema
