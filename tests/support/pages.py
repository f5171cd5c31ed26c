"""What the pages of the repository have in their tables."""


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the Markdown table whose first line begins with `heading`, without that line and the rule below."""
    lines = page[page.index(f"| {heading}") :].splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:end]]
