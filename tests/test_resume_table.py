"""docs/command_line.md lists what may change when a run goes on, as the code has it."""

from tools.resume_table import PAGE, page


def test_the_page_has_the_table_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python tools/resume_table.py"
