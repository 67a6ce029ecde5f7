"""Token ids that may not come next: each function finds candidates, and which of them are banned."""

from typing import NamedTuple

import torch
from torch import Tensor


class Bans(NamedTuple):
    """token_ids: int64 [n, m], in the vocabulary even where they are not banned. is_banned: bool [n, m]."""

    token_ids: Tensor
    is_banned: Tensor


def ban(logits: Tensor, positions: Tensor, bans: Bans) -> None:
    """logits[positions[i], ids that row i bans] = -inf. positions: int64 [n], all different."""
    if bans.token_ids.shape[1] == 0:
        return
    # Writes to the same place must agree: every id that is not banned gives way to the row's first that is,
    # or, in a row without any, to one that keeps its logit.
    first = bans.is_banned.int().argmax(1, keepdim=True)
    token_ids = torch.where(bans.is_banned, bans.token_ids, bans.token_ids.gather(1, first))
    index = (positions.unsqueeze(1), token_ids)
    has_any = bans.is_banned.any(1, keepdim=True)
    logits[index] = torch.where(has_any, -torch.inf, logits[index])


def repeated_ngrams(history: Tensor, lengths: Tensor, sizes: Tensor, largest_size: int) -> Bans:
    """What would make an n-gram occur twice, as transformers' NoRepeatNGramLogitsProcessor has it: a token is
    banned where it follows what the last size - 1 tokens are.

    history: int32 [n, width], the first lengths[i] of row i count. sizes: int32 [n], from 1 to largest_size.
    """
    ends = torch.arange(history.shape[1], device=history.device)
    is_banned = (ends >= sizes.unsqueeze(1) - 1) & (ends < lengths.unsqueeze(1))
    for back in range(1, min(largest_size, history.shape[1])):
        is_same = history[:, :-back] == _token_before_end(history, lengths, back)
        is_banned[:, back:] &= is_same | (sizes.unsqueeze(1) <= back)
    return Bans(history.long(), is_banned)


def completed_words(
    word_ids: Tensor, ends: Tensor, num_words: Tensor, longest: int, history: Tensor, lengths: Tensor
) -> Bans:
    """The last token of each word whose other tokens end the history, as NoBadWordsLogitsProcessor has it.

    word_ids: int32 [n, m], words one after the other; ends: int32 [n, most words], where each ends;
    num_words: int32 [n]; what is beyond is stale. longest: tokens of the longest word.
    """
    sizes = ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))
    is_banned = torch.arange(ends.shape[1], device=ends.device) < num_words.unsqueeze(1)
    for back in range(1, longest):
        is_same = _token_of_words(word_ids, ends, back) == _token_before_end(history, lengths, back)
        is_banned &= (sizes <= back) | (is_same & (lengths.unsqueeze(1) >= back))
    return Bans(_token_of_words(word_ids, ends, 0).long(), is_banned)


def _token_before_end(history: Tensor, lengths: Tensor, back: int) -> Tensor:
    """[n, 1]: back = 1 is the last one. Any, where there is none."""
    index = (lengths.long() - back).clamp(0, history.shape[1] - 1)
    return history.gather(1, index.unsqueeze(1))


def _token_of_words(word_ids: Tensor, ends: Tensor, back: int) -> Tensor:
    """[n, words]: back = 0 is the last one of each word. Any, where there is none."""
    return word_ids.gather(1, (ends.long() - 1 - back).clamp(0, word_ids.shape[1] - 1))
