"""HTML pages that hold all they show."""

import base64
from pathlib import Path
from typing import Any

import jinja2


def rendered(template: Path, **values: Any) -> str:
    """Return a template with these values in it, escaped; one that it lacks is an error."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """Return an address that holds its content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
