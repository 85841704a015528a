"""Pages for a browser: one file each, without outside references, from Jinja's templates beside this module."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    # Not PackageLoader: it wants a package that was found by a spec of its own, which a zip or a test's path need not give.
    loader = jinja2.FunctionLoader(lambda name: _read(name))
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"count": lambda n: f"{n:,.0f}", "mb": lambda n: f"{n / 1e6:.2f}", "percent": lambda x: f"{x:.1%}"}
    return made


def _read(name: str) -> str:
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """A page as text. Styles and scripts are put into it; values are escaped, where they are no Markup."""
    style, script = Markup(_read("page.css")), Markup(_read("page.js"))
    return _environment().get_template(template).render(style=style, script=script, **values)


def data(value: Any) -> Markup:
    """JSON that may stand in a script element of a page."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
