"""How DAGs and reports show themselves where a notebook asks them to."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace
from typing import Any

from flowrun import Engine

HOSTILE = "<script>alert(1)</script>"


def shown(thing: Any, **options: Any) -> dict[str, str]:
    bundle: dict[str, str] = thing._repr_mimebundle_(**options)
    return bundle


async def test_report_is_a_dictionary_that_a_notebook_can_draw(engine: Engine) -> None:
    engine.task(name="extract", dag="etl")(lambda: 1)

    @engine.task(name=HOSTILE, dag="etl", deps=["extract"])
    def fail() -> None:
        raise ValueError(HOSTILE)

    report = engine.get_run_report(await engine.run_once("etl"))
    bundle = shown(report)
    assert set(bundle) == {"text/plain", "text/html"}
    assert "Failed" in bundle["text/plain"]
    printed: list[str] = []
    report._repr_pretty_(SimpleNamespace(text=printed.append), False)  # type: ignore[attr-defined]
    assert printed == [bundle["text/plain"]]
    assert HOSTILE not in bundle["text/html"]
    assert "&lt;script&gt;" in bundle["text/html"]
    image = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', bundle["text/html"])
    assert image is not None
    root = ET.fromstring(base64.b64decode(image[1]))
    assert root.tag.endswith("svg")
    assert not root.findall(".//{*}script")


async def test_report_stays_a_plain_dictionary_to_programs(engine: Engine) -> None:
    engine.task(name="a", dag="d")(lambda: [1])
    report = engine.get_run_report(await engine.run_once("d"))
    assert isinstance(report, dict)
    assert report == dict(report)
    assert json.loads(json.dumps(report)) == report
    for twin in (copy.copy(report), copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert twin == report
        assert "text/html" in shown(twin)
    assert repr(report) == repr(dict(report))


def test_scope_shows_its_tree_and_its_picture(engine: Engine) -> None:
    etl = engine.dag("etl")
    etl.task(name="extract")(lambda: 1)
    etl.task(name="load", deps=["extract"])(lambda: 1)
    bundle = shown(etl)
    assert "load" in bundle["text/plain"]
    assert ET.fromstring(bundle["image/svg+xml"]).tag.endswith("svg")


def test_notebook_gets_what_it_asks_for(engine: Engine) -> None:
    etl = engine.dag("etl")
    etl.task(name="extract")(lambda: 1)
    assert set(shown(etl, include=["text/plain"])) == {"text/plain"}
    assert set(shown(etl, exclude=["text/plain"])) == {"image/svg+xml"}


def test_scope_that_cannot_be_drawn_says_why(engine: Engine) -> None:
    etl = engine.dag("etl")
    etl.task(name="load", deps=["extract"])(lambda: 1)
    bundle = shown(etl)
    assert set(bundle) == {"text/plain"}
    assert "'extract'" in bundle["text/plain"]
    assert bundle["text/plain"].startswith("<DagScope 'etl'>: ")
