"""`detoxbench describe`: every setting of a component: type, default, range, meaning, source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detoxbench.cli.common import OK, Parser, console, print_json, table
from detoxbench.cli.list import KINDS, doc, fidelity, first_comment
from detoxbench.errors import UsageError, did_you_mean


def main(argv: list[str]) -> int:
    """Run the verb. Returns the exit code."""
    parser = Parser(
        prog="detoxbench describe",
        description="Every setting of a component: type, default, range, meaning, source.",
    )
    parser.add_argument("kind", choices=[kind[:-1] for kind in KINDS])
    parser.add_argument("name")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(argv)
    described = _described_model(args.name) if args.kind == "model" else _described_component(args.kind, args.name)
    if args.json:
        print_json(described)
    else:
        _show(args.kind, described)
    return OK


def _show(kind: str, described: dict[str, Any]) -> None:
    """For people: the name, the description, other facts, and a paragraph for each setting."""
    show = console().print
    fields = described.pop("config")
    show(f"{kind} {described.pop('name')}\n\n{described.pop('doc')}")
    if described:
        facts = [(key.replace("_", " "), str(value)) for key, value in described.items() if value != ""]
        show("\n", table(facts), sep="")
    if not fields:
        show("\nThere is nothing to set.")
    for field in fields:
        limits = f", {field['range']}" if field["range"] else ""
        number = "" if field["identity"] else " (not part of the run's identity)"
        number += " (acts when applied: a sweep over it learns once)" if field["applied"] else ""
        show(f"\n{kind}.{field['name']}={_yaml(field['default'])}  {field['type']}{limits}")
        show(f"    {field['meaning']}{number}")
        if field["switch"]:
            show(f"    null is {', '.join(f'{value} at fidelity={at}' for at, value in field['switch'].items())}")
        if field["source"]:
            show(f"    source: {field['source']}")


def _described_model(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from detoxbench.config import ModelSpec
    from detoxbench.runner import composition

    files = composition.options("model")
    if name not in files:
        raise UsageError(f"unknown model '{name}'{did_you_mean(name, files)}; known: {', '.join(sorted(files))}")
    settings: Any = OmegaConf.to_container(OmegaConf.load(files[name]))
    return {"name": name, "doc": first_comment(files[name]), "config": described_fields(ModelSpec, settings)}


def _described_component(kind: str, name: str) -> dict[str, Any]:
    from detoxbench.registry import REGISTRIES

    cls: Any = REGISTRIES[kind].get(name)
    facts: dict[str, Any] = {"version": cls.version, "licence": cls.licence}
    if kind != "scorer":
        facts["paper"] = cls.paper
    if kind == "method":
        facts["fidelity"] = fidelity(cls)
        facts["fitted"] = "once for the suite" if cls().scope.value == "once" else "for each record"
        facts["fit_data"] = ", ".join(f"fit.{role.value}" for role in sorted(cls().needs)) or "none"
    if kind == "suite":
        from detoxbench.runner.printed import protocol

        facts |= {"protocol": protocol(name), "data": cls.data, "measured": cls.measured, "cost": cls.cost}
    return {"name": name, "doc": doc(cls), **facts, "config": described_fields(cls.Config)}


def described_fields(config: Any, file_settings: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The fields of a configuration dataclass; `file_settings` (of a model's file) replace their defaults."""
    from dataclasses import fields
    from typing import get_type_hints

    hints = get_type_hints(config)
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return [
        {
            "name": field.name,
            "type": _type(str(field.type), hints[field.name]),
            "default": (file_settings or {}).get(field.name, field.default),
            "range": ", ".join(f"{signs[sign]} {bound}" for sign, bound in field.metadata["bounds"].items()),
            "meaning": field.metadata["help"],
            "source": field.metadata["source"],
            "switch": {at: _yaml(value) for at, value in field.metadata.get("switch", {}).items()},
            "identity": field.metadata["identity"],
            "applied": field.metadata.get("applied", False),
        }
        for field in fields(config)
    ]


def _type(written: str, meant: Any) -> str:
    """A field's type as it is written, or its choices where that is a name for them."""
    from detoxbench.config import choices_of

    return str(meant).removeprefix("typing.") if choices_of(meant) and "Literal" not in written else written


def _yaml(value: Any) -> str:
    """As it would be written in a configuration file."""
    import json

    return value if isinstance(value, str) and value == value.strip() and value else json.dumps(value, default=str)
