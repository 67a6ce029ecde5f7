"""Decoding SentencePiece-like tokenizers with byte fallback (Llama 2, Mistral, Gemma).

A token is a piece of text, or one byte such as <0x0A>. Byte tokens in a row are decoded as a whole, and one
malformed byte makes U+FFFD of every byte of that run: nothing of a run is certain before its end.
"""

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.text.utf8 import LONGEST_INCOMPLETE, incomplete_end
from engine.text.vocabulary import Json

# A longer run, if well-formed so far, is shown nevertheless: rare scripts are long runs, and shall stream.
MAX_HELD_BYTES = 64

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DECODER = re.compile(r"(Replace )*ByteFallback( Fuse)?( Strip)?")


@dataclass(frozen=True, slots=True)
class FallbackTable:
    """What visible token ids stand for. margin: spaces that the whole text loses at its beginning."""

    pieces: Mapping[int, str]
    byte_values: Mapping[int, int]
    margin: int


def fallback_table(tokens: Mapping[int, str], decoder: Sequence[Json]) -> FallbackTable | None:
    """The table of visible tokens, if `decoder` (its parts) is that of such a tokenizer."""
    if not _DECODER.fullmatch(" ".join(part["type"] for part in decoder)):
        return None
    patterns = [
        (part["pattern"].get("String"), part["content"]) for part in decoder if part["type"] == "Replace"
    ]
    strips = [part for part in decoder if part["type"] == "Strip"]
    if any(pattern is None for pattern, _ in patterns):
        return None
    if any(strip["content"] != " " or strip["stop"] or decoder[-2]["type"] != "Fuse" for strip in strips):
        return None
    pieces, byte_values = {}, {}
    for token_id, token in tokens.items():
        for pattern, content in patterns:
            token = token.replace(pattern, content)
        if match := _BYTE_TOKEN.fullmatch(token):
            byte_values[token_id] = int(match[1], 16)
        else:
            pieces[token_id] = token
    return FallbackTable(pieces, byte_values, sum(strip["start"] for strip in strips))


class ByteRun:
    """Byte tokens in a row."""

    def __init__(self, begun: bytes) -> None:
        """begun: what the prompt left of a character."""
        self._held = bytearray(begun)
        self._is_malformed = False

    def push(self, byte: int) -> str:
        """One more byte; the text that is to be shown now."""
        self._held.append(byte)
        if len(self._held) <= MAX_HELD_BYTES and not self._is_malformed:
            return ""
        text, num_shown = _REPLACEMENT * len(self._held), len(self._held)
        if not self._is_malformed:
            try:
                text, num_shown = codecs.utf_8_decode(self._held, "strict", False)
            except UnicodeDecodeError:
                self._is_malformed = True
        del self._held[:num_shown]
        return text

    def close(self) -> str:
        """The run is over; what was held of it."""
        try:
            text = self._held.decode()
        except UnicodeDecodeError:
            text = _REPLACEMENT * len(self._held)
        self._held.clear()
        self._is_malformed = False
        return text


class ByteFallbackStream:
    """Text of visible tokens, other ids are skipped; byte runs are held back as `ByteRun` says."""

    def __init__(self, table: FallbackTable, prompt_token_ids: Sequence[int]) -> None:
        self._table = table
        self._margin = table.margin
        self._run = ByteRun(incomplete_end(self._last_bytes(prompt_token_ids)))
        self._pass_margin(prompt_token_ids)

    def add(self, token_ids: Sequence[int]) -> str:
        pieces, byte_values, run = self._table.pieces, self._table.byte_values, self._run
        shown: list[str] = []
        for token_id in token_ids:
            piece = pieces.get(token_id)
            if piece is not None:
                shown += (run.close(), piece)
            elif token_id in byte_values:
                shown.append(run.push(byte_values[token_id]))
        return self._strip("".join(shown))

    def flush(self) -> str:
        return self._strip(self._run.close())

    def _strip(self, text: str) -> str:
        """Without what is left of the margin; all of the margin is behind the first other character."""
        if not self._margin or not text:
            return text
        stripped = text[: self._margin].lstrip(" ") + text[self._margin :]
        self._margin = 0 if stripped else self._margin - len(text)
        return stripped

    def _pass_margin(self, token_ids: Sequence[int]) -> None:
        """The margin belongs to the prompt, as far as that has text."""
        for token_id in token_ids:
            byte = self._table.byte_values.get(token_id)
            self._strip(self._table.pieces.get(token_id, "") if byte is None else chr(byte))
            if not self._margin:
                break

    def _last_bytes(self, token_ids: Sequence[int]) -> bytes:
        """Up to three byte tokens at the very end."""
        last: list[int] = []
        for token_id in reversed(token_ids):
            if token_id in self._table.pieces or len(last) == LONGEST_INCOMPLETE:
                break
            if token_id in self._table.byte_values:
                last.insert(0, self._table.byte_values[token_id])
        return bytes(last)
