"""HTML pages that hold all they show."""

import base64
from pathlib import Path
from typing import Any

import jinja2


def rendered(template: Path, **values: Any) -> str:
    """Return a template with these values in it, escaped; one that it lacks is an error.

    It may extend base_template.html, which has the head of all pages.
    """
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(template.name).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """Return an address that holds its content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
