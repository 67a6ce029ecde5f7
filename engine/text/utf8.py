"""What UTF-8 leaves open at the end of some bytes."""

import codecs

LONGEST_INCOMPLETE = 3  # bytes that can begin a character and not finish it


def incomplete_end(data: bytes) -> bytes:
    """The last bytes, if they begin a character that more bytes may finish; else nothing."""
    for start in range(max(0, len(data) - LONGEST_INCOMPLETE), len(data)):
        try:
            text, num_read = codecs.utf_8_decode(data[start:], "strict", False)
        except UnicodeDecodeError:
            continue
        if not text and num_read == 0:
            return data[start:]
    return b""
