"""Which words of a prompt should be in the picture: those in quotation marks.

    "OPEN"  “OPEN”  „OPEN“  ”OPEN”  «OPEN»  »OPEN«  ‹OPEN›  「開店」  『開店』  〝開店〞  \\"OPEN\\"

    'OPEN'  ‘OPEN’      single quotes count where the prompt has none of those above

Inches. A mark directly behind a digit or a fraction (a 27" monitor, a 3½" disk) opens nothing, and
neither does one with a digit and a space before it and a space or a stop behind it (a 27 "
monitor). It opens all the same where a letter follows at once and the next mark ends a word
(GATE 5"A").

Apostrophes. A single quote opens where no letter is before it and closes where none is behind it,
so that DON'T and dogs' are no quotes. The 'n' of rock 'n' roll is none either; 'Tis, 'em, '90s and
their like open a quote only if it ends before another begins, and not behind an s ('Tis the boys'
turn).
"""

from __future__ import annotations

import re

__all__ = ["quoted_texts"]

_NUMBER = r"[\d¼½¾⅐-⅞↉]"
_IS_INCH = rf"(?<={_NUMBER})|(?<={_NUMBER}\s)\\?.[\s,.;:)]"
_LETTER = r"[^\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]"  # of scripts that have apostrophes
_ANY, _OPEN, _LOW = '"＂“”‟', '"＂”', "“„‟"
_DOUBLE = re.compile(
    rf"(?!{_IS_INCH})\\[{_ANY}„]([^{_ANY}]*)\\[{_ANY}]"
    rf"|(?!{_IS_INCH})(?<!\\)[{_OPEN}]((?:\\[{_ANY}]|[^{_ANY}])*)[{_ANY}]"
    rf"|(?<={_NUMBER})[{_OPEN}](?={_LETTER})([^{_ANY}]*[^\s\d{_ANY}])[{_ANY}](?!\w)"
    rf"|[{_LOW}]([^{_ANY}]*)[{_ANY}]"
    "|«([^«»]*)»|»([^«»]*)«|‹([^‹›]*)›|›([^‹›]*)‹|「([^「」]*)」|『([^『』]*)』|〝([^〝〞〟]*)[〞〟]"
)
_OPENS, _CLOSES = "['＇‘‚‛]", "['＇‘’]"
_AND = "['＇‘’][nN]['＇‘’]"  # rock 'n' roll
_IS_AND = rf"['＇‘’]n['＇‘’]|(?<=[A-Z]\s){_AND}\s[A-Z]"
_SHORTENED = r"(?:\d+s|n|tis|twas|twere|twill|em|till?|cause|cos|bout)\b"
_SINGLE = re.compile(
    rf"(?<!{_LETTER})(?!{_IS_AND})\\?{_OPENS}(?=\S)(?:"
    rf"(?!(?i:{_SHORTENED}))((?:\s{_AND}\s|(?!\s{_AND}\s)[^\n]){{1,1000}}?)(?<=\S)"
    rf"|(?=(?i:{_SHORTENED}))((?:(?!(?<!{_LETTER}){_OPENS}\S)[^\n]){{1,1000}}?)(?<=[^\ssS])"
    rf"){_CLOSES}(?!{_LETTER})"
)


def quoted_texts(prompt: str) -> tuple[str, ...]:
    """Return what stands in quotation marks, in order, without empty ones."""
    for marks in (_DOUBLE, _SINGLE):
        inside = (next(filter(None, match.groups()), "") for match in marks.finditer(prompt))
        texts = [re.sub(rf"\\(?=[{_ANY}'’]|$)", "", text).strip() for text in inside]
        if any(texts):
            return tuple(filter(None, texts))
    return ()
