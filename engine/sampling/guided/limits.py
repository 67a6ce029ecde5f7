"""How much one grammar may cost, counted the same way wherever it is built."""

from llguidance import LLParserLimits

from engine.sampling.guided.spec import GuidedKind

MAX_STEP_SECONDS = 0.1  # processor time of one token, of those that the proof tries
PROOF_TOKENS = 16
PROOF_STACK_BYTES = 1 << 20  # half of the smallest stack of later, that of the executor's threads


def parser_limits(kind: GuidedKind) -> LLParserLimits:
    """Counts, not clocks: what passes them once passes them anywhere.

    Tighter than the library's own where one row could take too long for the other rows of its batch. An
    ambiguous grammar takes time in the square of a row's items. A schema does not, and its rows have four
    items for each optional property that may come next.
    """
    return LLParserLimits(
        max_items_in_row=2000 if kind == "json_schema" else 400,
        step_max_items=20_000,  # 1 ms
        step_lexer_fuel=200_000,  # 14 ms
        max_lexer_states=50_000,  # 1 to 2 kB each
        verbose_errors=False,  # they would quote the grammar
    )
