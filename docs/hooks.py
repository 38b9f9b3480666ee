"""What `mkdocs build` does to pages beside what its plugins do."""

import re


def on_page_content(html: str, **kwargs) -> str:
    """Turn [`Name`], the link of docstrings in the Hugging Face form, into a link where the page has that name."""

    def link(match: re.Match) -> str:
        target = f"offseg_hf.{match[1]}"
        code = f"<code>{match[1]}</code>"
        return f'<a href="#{target}">{code}</a>' if f'id="{target}"' in html else code

    return re.sub(r"\[<code>(\w+)</code>\]", link, html)
