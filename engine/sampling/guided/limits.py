"""How much one grammar may cost, counted the same way wherever it is built."""

from llguidance import LLParserLimits

MAX_STEP_SECONDS = 0.1  # processor time of one token, of those that the proof tries
PROOF_TOKENS = 16
PROOF_STACK_BYTES = 1 << 20  # half of the smallest stack of later, that of the executor's threads


def parser_limits() -> LLParserLimits:
    """Counts, not clocks: what passes them once passes them anywhere.

    Tighter than the library's own where a step could take too long for the other rows of a batch: rows of
    1000 items are an object of 250 optional properties, and bound the quadratic cost of ambiguous grammars to
    some 20 ms a token.
    """
    return LLParserLimits(
        max_items_in_row=1000,
        step_max_items=20_000,  # 1 ms
        step_lexer_fuel=200_000,  # 14 ms
        max_lexer_states=50_000,  # 1 to 2 kB each
        verbose_errors=False,  # they would quote the grammar
    )
