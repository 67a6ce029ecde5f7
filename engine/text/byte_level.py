"""Decoding byte-level tokenizers (GPT-2's; now Llama 3, Qwen and most others): a token is some bytes."""

import codecs
from collections.abc import Mapping, Sequence

from engine.text.utf8 import LONGEST_INCOMPLETE

_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
# GPT-2 spells a printable byte as its Latin-1 character, and the others, in order, as those from U+0100 on.
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def spelled_bytes(token: str) -> bytes:
    """The bytes that a token spells. An added token with a character that spells no byte is itself."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


class ByteLevelStream:
    """Feeds an incremental UTF-8 decoder; malformed bytes become U+FFFD as the Unicode standard recommends.

    table: visible token ids to bytes; other ids are skipped.
    """

    def __init__(self, table: Mapping[int, bytes], prompt_token_ids: Sequence[int]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(self._last_bytes(prompt_token_ids))

    def add(self, token_ids: Sequence[int]) -> str:
        get = self._table.get
        return self._decoder.decode(b"".join([get(token_id, b"") for token_id in token_ids]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def _last_bytes(self, token_ids: Sequence[int]) -> bytes:
        """Enough of the end to hold a character that the prompt began and did not finish."""
        last = b""
        for token_id in reversed(token_ids):
            last = self._table.get(token_id, b"") + last
            if len(last) >= LONGEST_INCOMPLETE:
                break
        return last
