"""Which words of a prompt should be in the picture: those in quotation marks.

    "OPEN"  “OPEN”  „OPEN“  ”OPEN”  «OPEN»  »OPEN«  ‹OPEN›  「開店」  『開店』  〝開店〞

    'OPEN'  ‘OPEN’      single quotes count where the prompt has none of those above

A mark directly behind a digit opens nothing, because it stands for inches (a 27" monitor); nor does
one with a digit and a space before it and a space or a stop behind it (a 27 " monitor). A single
quote opens where no letter is before it and closes where none is behind it, so that apostrophes
(DON'T, dogs') are letters; 'n' and '90s are none of it.
"""

from __future__ import annotations

import re

__all__ = ["quoted_texts"]

_DOUBLE = re.compile(
    r"""(?<!\d)(?!(?<=\d\s).[\s,.;:)])["＂”]([^"＂“”‟]*)["＂“”‟]"""  # may stand for inches
    r"""|[“„‟]([^"＂“”‟]*)["＂“”‟]"""
    "|«([^«»]*)»|»([^«»]*)«|‹([^‹›]*)›|›([^‹›]*)‹|「([^「」]*)」|『([^『』]*)』|〝([^〝〞〟]*)[〞〟]"
)
_LETTER = r"[^\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]"  # of scripts that have apostrophes
_SINGLE = re.compile(
    rf"(?<!{_LETTER})['＇‘‚‛](?=\S)(?!\d+s\b)(?!n['’])"
    r"([^\n]{1,1000}?)(?<=\S)"
    rf"['＇‘’](?!{_LETTER})"
)


def quoted_texts(prompt: str) -> tuple[str, ...]:
    """Return what stands in quotation marks, in order, without empty ones."""
    for marks in (_DOUBLE, _SINGLE):
        texts = [next(filter(None, match.groups()), "").strip() for match in marks.finditer(prompt)]
        if any(texts):
            return tuple(filter(None, texts))
    return ()
