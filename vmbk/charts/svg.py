"""Charts as SVG: offline, and byte for byte the same whenever the data are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree

from vmbk.charts.style import altair
from vmbk.errors import InputError
from vmbk.units import quoted

_ID: Final = re.compile(r'\bid="([^"]+)"')
_REFERENCE: Final = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')
_NAMESPACE: Final = re.compile(r"^\{[^}]*\}")
_FOR_READERS: Final = ("role", "aria-label", "aria-roledescription", "aria-hidden")


def to_svg(chart: Any) -> str:
    """Draw a chart, whatever theme Altair has enabled.

    Parameters
    ----------
    chart : altair.Chart
        Any chart, such as those of `vmbk.charts`.

    Returns
    -------
    str
        An SVG document.

    Raises
    ------
    InputError
        If it is no chart.
    VmbkError
        If Altair or vl-convert is not installed.
    """
    if not isinstance(chart, altair().TopLevelMixin):
        raise InputError(f"{quoted(chart)} is not a chart", hint="pass one that vmbk.charts made")
    with altair().theme.enable("default"):
        spec = chart.to_dict()
    return spec_to_svg(spec)


def spec_to_svg(spec: Mapping[str, Any]) -> str:
    """Draw a Vega-Lite specification of Altair's version; see `to_svg`."""
    alt = altair()
    import vl_convert

    version = "_".join(alt.SCHEMA_VERSION.split(".")[:2])
    # vl-convert numbers clip paths through the life of the process.
    return _renumber(vl_convert.vegalite_to_svg(dict(spec), vl_version=version))


def _renumber(svg: str) -> str:
    """Number the ids of an SVG from zero, references included."""
    names = {name: f"id{i}" for i, name in enumerate(dict.fromkeys(_ID.findall(svg)))}
    return _REFERENCE.sub(lambda m: m[1] + names.get(m[2], m[2]), svg) if names else svg


def inline(svg: str, prefix: str, label: str) -> str:
    """An SVG element for an HTML page that holds several.

    Parameters
    ----------
    svg : str
        As `to_svg` makes it.
    prefix : str
        Of its ids; another one for each chart of the page.
    label : str
        What a screen reader says in place of the picture.

    Returns
    -------
    str
        Without namespaces, which HTML does not need. The description of a mark becomes its
        ``title``, which browsers show where the pointer rests.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        description = element.get("aria-label")
        is_mark = (
            element.tag in ("path", "line")
            and element.get("role") == "graphics-symbol"
            and element.get("aria-roledescription") != "line mark"  # described by its points
        )
        for name in _FOR_READERS:
            element.attrib.pop(name, None)
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            element.set(_NAMESPACE.sub("", name), _prefixed(name, value, prefix))
        if is_mark and description:
            title = ElementTree.Element("title")
            title.text = description
            element.append(title)
    for name in ("version", "class"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _prefixed(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name.endswith("href"):
        return value.replace("#", f"#{prefix}-", 1) if value.startswith("#") else ""
    return value.replace("url(#", f"url(#{prefix}-")
