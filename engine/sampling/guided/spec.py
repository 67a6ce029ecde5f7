"""What a request asks of guided decoding, before it is compiled: needs neither torch nor the library."""

from dataclasses import dataclass
from typing import Literal, get_args

from engine.errors import InvalidArgumentError

MAX_GRAMMAR_CHARS = 1 << 20  # also of all choices together
MAX_CHOICES = 4096

GuidedKind = Literal["json_schema", "regex", "grammar", "choice"]


@dataclass(frozen=True, slots=True)
class GuidedSpec:
    """The output has to match this, from its first character to its last.

    kind: what `text` is: a JSON schema, a regular expression, a context-free grammar (in the notation of Lark
    or of llama.cpp, GBNF), or nothing, where the output is one of `choices`. Regular expressions have neither
    look-around nor references back; their character classes are Unicode's, a dot is all but a newline.

    Raises InvalidArgumentError, field `guided` or `guided.<kind>`, for what is too long, empty, no Unicode.
    Whether the text can be compiled is `GrammarCompiler`'s to say.
    """

    kind: GuidedKind
    text: str = ""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(GuidedKind):
            raise InvalidArgumentError("guided", self.kind, f"one of {', '.join(get_args(GuidedKind))}")
        if self.kind == "choice":
            self._check_choices()
            return
        if self.choices:
            raise InvalidArgumentError(self.field, self.choices[0], "has no choices")
        if not self.text:
            raise InvalidArgumentError(self.field, self.text, "must not be empty")
        self._check_chars(self.text)

    @property
    def field(self) -> str:
        """The name that errors call it by."""
        return f"guided.{self.kind}"

    def _check_choices(self) -> None:
        if self.text:
            raise InvalidArgumentError(self.field, self.text, "has choices, not a text")
        if not 1 <= len(self.choices) <= MAX_CHOICES:
            raise InvalidArgumentError(self.field, len(self.choices), f"1 to {MAX_CHOICES} choices")
        if not all(self.choices):
            raise InvalidArgumentError(self.field, "", "no choice may be empty")
        self._check_chars("".join(self.choices))

    def _check_chars(self, text: str) -> None:
        if len(text) > MAX_GRAMMAR_CHARS:
            limit = f"at most {MAX_GRAMMAR_CHARS} characters, this has {len(text)}"
            raise InvalidArgumentError(self.field, text[:100], limit)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            limit = f"must be valid Unicode; character {error.start} is half a surrogate pair"
            raise InvalidArgumentError(self.field, text[error.start : error.end], limit) from None
