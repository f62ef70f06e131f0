"""Text out of data in Markdown pages."""

_SIGNS = str.maketrans({"\\": r"\\", "|": r"\|", "<": "&lt;", "[": r"\[", "`": r"\`"})


def plain(text: object) -> str:
    """Write text so that it stays in one cell or line, as it is: no column, HTML, link or code of its own."""
    return " ".join(str(text).split("\n")).replace("\r", " ").translate(_SIGNS)
