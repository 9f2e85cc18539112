"""The parts of an experiment: what kinds there are of each family, and how they are written.

A part is a frozen dataclass that derives from its family's class (Task, Model, Loss, ...) and is registered under a
name. On the command line, in TOML and in messages it is written `name` or `name(field=value, ...)`, in JSON
{"kind": name, field: value, ...}. A user's own kind stands there as "package.module:Name", from which any process finds
it; a name that it is registered under can be written where its module has been imported.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from grokfast import checks

T = TypeVar("T", bound="type[Part]")

# What registers the kinds that come with grokfast, on first use of a family.
_HOMES: dict[str, tuple[str, ...]] = {
    "task": ("grokfast.tasks",),
    "model": ("grokfast.models",),
    "loss": ("grokfast.losses",),
    "optimizer": ("grokfast.transforms.optimizers", "grokfast.transforms.muon", "grokfast.transforms.schedule_free"),
    "transform": ("grokfast.transforms",),
    "change": ("grokfast.schedules",),
    "probe": ("grokfast.probes",),
}
_KINDS: dict[str, dict[str, type[Part]]] = {family: {} for family in _HOMES}
# What stores of grokfast 0.1 call them.
_ONCE = {"ModularTask": "modular", "PairMLPConfig": "pair_mlp", "TransformerConfig": "transformer", "EMA": "ema"}
_ONCE["MA"] = "ma"
_OPTIONAL = ("transform",)  # families of which there may be none
_PATH = re.compile(r"[A-Za-z_][\w./-]*")  # as data/set.npz, which Python reads as operations


class Part:
    """Base of all parts: a frozen dataclass whose fields are plain values, or parts, checked when it is made.

    family: set by the family's class, not by its kinds. varies: the fields in which runs of an ensemble may differ;
    differs: further ones, that are no numbers of a step.
    scheduled: of a model or a loss the fields that may change with the step (`schedule.changes`).
    keeps: the fields that another kind of the family takes over when it is chosen instead, if it has them.
    consumed: the fields that are read when it is made, and are empty then, as a file's path: they are no axes.
    inline: a field of several parts whose names stand in dotted paths without the field's own: filter.ema.alpha.
    """

    family: ClassVar[str]
    varies: ClassVar[frozenset[str]] = frozenset()
    differs: ClassVar[frozenset[str]] = frozenset()
    scheduled: ClassVar[frozenset[str]] = frozenset()
    keeps: ClassVar[frozenset[str]] = frozenset()
    consumed: ClassVar[frozenset[str]] = frozenset()
    inline: ClassVar[str] = ""


def added(default: Any) -> Any:
    """A field that a kind did not have from its beginning: at its default it is left out of hashes, so that runs that
    were stored without it are known again."""
    return dataclasses.field(default=default, metadata={"added": True})


def remark(default: Any) -> Any:
    """A field that says something to people: it is in no hash, and equal parts may differ in it."""
    return dataclasses.field(default=default, compare=False, metadata={"remark": True})


def register(name: str) -> Callable[[T], T]:
    """A class decorator: the kind is `name` in its family. ValueError where another class has that name already."""
    checks.text("name", name)
    if not name.isidentifier():
        raise ValueError(f"name must be an identifier, got {name!r}")

    def add(kind: T) -> T:
        kinds = _KINDS[kind.family]
        known = kinds.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"{kind.family} {name!r} is {known.__module__}.{known.__qualname__} already")
        kinds[name] = kind
        return kind

    return add


def kinds(family: str) -> dict[str, type[Part]]:
    """All registered kinds of a family by name."""
    for home in _HOMES[family]:
        importlib.import_module(home)
    return _KINDS[family]


def find(family: str, name: Any, argument: str | None = None) -> type[Part]:
    """The kind that is called so. ValueError, which begins with `argument`, for an unknown one names the nearest;
    for a "module:Name" it says what is missing."""
    argument = argument or family
    if isinstance(name, str) and ":" in name:
        return _foreign(family, name, argument)
    known = kinds(family)
    if not isinstance(name, str) or name not in known:
        accepted = ", ".join(map(repr, ["none", *known] if family in _OPTIONAL else known))
        raise ValueError(
            f"{argument} must be one of {accepted}, or a class of yours as 'package.module:Name', "
            f"got {checks.shown(name)}{checks.nearest(name, known)}"
        )
    return known[name]


def name_of(part: Part | type[Part]) -> str:
    """What `find` calls the part's kind, in any process: of a user's own kind its "module:Name", registered or not."""
    kind = part if isinstance(part, type) else type(part)
    if kind.__module__.startswith("grokfast."):
        for name, known in kinds(kind.family).items():
            if known is kind:
                return name
    return f"{kind.__module__}:{kind.__qualname__}"


def _foreign(family: str, name: str, argument: str) -> type[Part]:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{argument} {checks.shown(name)} is not there: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Part) and getattr(found, "family", None) == family):
        raise TypeError(f"{argument} must be a kind of {family}, {name!r} is {checks.shown(found)}")
    return found


def _is_kind(name: str) -> bool:
    """Whether "module:Name" is a kind of part, or not there at all."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError, ValueError, TypeError):
        return True
    return isinstance(found, type) and issubclass(found, Part)


def chosen(family: str, said: Any, current: Part | None = None, argument: str | None = None) -> Any:
    """The part that is meant: a part, its text, or a mapping of "kind" and fields; None and "none" are None.

    Fields that are not said are those of `current`, if it is of that kind; of another kind those it `keeps`; else the
    kind's own defaults. Raises TypeError or ValueError that begins with `argument`.
    """
    argument = argument or family
    if said is None or (isinstance(said, str) and said.strip().lower() == "none"):
        return None
    if isinstance(said, Part):
        if said.family != family:
            raise TypeError(f"{argument} must be a {family}, got {checks.shown(said)}")
        return said
    if isinstance(said, str):
        if family == "transform" and len(several_texts := apart(said, "+")) > 1:
            return made(find(family, "chain"), {"transforms": several_texts}, argument)
        name, fields = _read(said, argument)
        if family == "model" and ":" in name and not _is_kind(name):  # a module of one's own
            name, fields = "module", {"factory": name, **fields}
        kind = find(family, name, argument)
    elif isinstance(said, Mapping):
        fields = dict(said)
        if "kind" not in fields:
            accepted = ", ".join(map(repr, kinds(family)))
            raise ValueError(f"{argument} must have a kind, one of {accepted}, got {checks.shown(said)}")
        if fields["kind"] == "none" and family in _OPTIONAL:
            if len(fields) > 1:
                raise ValueError(f"{argument} 'none' has no field {next(name for name in fields if name != 'kind')!r}")
            return None
        kind = find(family, _lower(family, fields.pop("kind")), argument)
    else:
        raise TypeError(f"{argument} must be a {family}, its name or a mapping, got {checks.shown(said)}")
    kept: dict[str, Any] = {}
    names = names_of(kind)
    if type(current) is kind:
        kept = fields_of(current)
    elif current is not None:
        kept = {name: own for name, own in fields_of(current).items() if name in kind.keeps and name in names}
    return made(kind, {**kept, **fields}, argument)


def _lower(family: str, name: Any) -> Any:
    """Names may be written in capitals, as classes are."""
    if isinstance(name, str) and ":" not in name:
        once = _ONCE.get(name, name.lower())
        return once if once in kinds(family) else name
    return name


def kind_name(plain: Mapping[str, Any]) -> str:
    """The kind that a part's JSON values name, in any version."""
    kind = str(plain.get("kind"))
    return str(plain.get("name")) if kind == "OptimizerConfig" else _ONCE.get(kind, kind)


def _read(text: str, argument: str) -> tuple[str, dict[str, Any]]:
    """`name` or `name(field=value, ...)`; values are literals, or bare words, relative paths and parts as strings."""
    name, opened, rest = text.strip().partition("(")
    name = name.strip()
    if not name:
        raise ValueError(f"{argument} must be written name or name(field=value, ...), got {checks.shown(text)}")
    name = name if ":" in name else name.lower() if not name.islower() else name
    if not opened:
        return name, {}
    try:
        source = f"_({rest}"
        call = ast.parse(source, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return name, {str(k.arg): _value(k.value, source) for k in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{argument} must be written name or name(field=value, ...), the values as literals, "
            f"got {checks.shown(text)}"
        ) from error


def apart(text: str, sign: str) -> list[str]:
    """What stands between the signs that are not inside of parentheses."""
    found, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == sign and depth <= 0:
            found.append("")
        else:
            found[-1] += character
    return found


def _value(node: ast.expr, source: str) -> Any:
    if isinstance(node, ast.Name) and node.id not in ("True", "False", "None"):
        return {"true": True, "false": False, "none": None}.get(node.id, node.id)
    said = ast.get_source_segment(source, node) or ""
    if isinstance(node, (ast.Attribute, ast.BinOp)) and _PATH.fullmatch(said):
        return said
    called = node.func.id.lower() if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if called and any(called in kinds(family) for family in _HOMES):
        return said
    return ast.literal_eval(node)


def several(family: str, said: Any, current: Sequence[Part] = (), argument: str | None = None) -> tuple[Part, ...]:
    """The parts that are meant by a text, with commas between them, or by a sequence: see `chosen`."""
    argument = argument or family
    if said is None or (isinstance(said, str) and said.strip().lower() in ("", "none")):
        return ()
    if isinstance(said, str):
        said = apart(said, ",")
    if isinstance(said, (Part, Mapping)) or not isinstance(said, (list, tuple)):
        raise TypeError(f"{argument} must be a sequence of kinds of {family}, got {checks.shown(said)}")
    by_kind = {type(part): part for part in current}
    found = []
    for i, one in enumerate(said):
        part = chosen(family, one, argument=f"{argument}[{i}]")
        if part is None:
            raise TypeError(f"{argument}[{i}] must be a {family}, got {checks.shown(one)}")
        if isinstance(one, str) and type(part) in by_kind and "(" not in one:
            part = by_kind[type(part)]
        found.append(part)
    return tuple(found)


def made(kind: type[Part], fields: Mapping[str, Any], argument: str) -> Part:
    """A part of a kind with these fields. Raises ValueError naming an unknown one, and what the kind's checks raise."""
    names = names_of(kind)
    for name in fields:
        if name not in names:
            accepted = f", accepted are {', '.join(names)}" if names else ""
            raise ValueError(
                f"{argument} {name_of(kind)!r} has no field {checks.shown(name)}{accepted}{checks.nearest(name, names)}"
            )
    try:
        return kind(**{name: _plain_in(own) for name, own in fields.items()})
    except (TypeError, ValueError) as error:
        said, like = str(error), TypeError if isinstance(error, TypeError) else ValueError
        raise like(said if said.startswith(argument) else f"{argument}: {said}") from error


def _plain_in(value: Any) -> Any:
    return tuple(map(_plain_in, value)) if isinstance(value, list) else value


def names_of(kind: Any) -> list[str]:
    """The names of a part's fields, in the order in which they are given: those given by name only come last."""
    own = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return [f.name for f in sorted(own, key=lambda f: bool(f.kw_only))]


def fields_of(part: Any) -> dict[str, Any]:
    """A part's fields by name."""
    return {name: getattr(part, name) for name in names_of(part)}


def to_plain(value: Any) -> Any:
    """A part, or a dataclass of parts, or a value as JSON values."""
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        if callable(value):
            raise TypeError(f"{checks.shown(value)} cannot be stored: it must be importable, as 'package.module:Name'")
        return value
    plain = {name: to_plain(own) for name, own in fields_of(value).items()}
    return {"kind": name_of(value), **plain} if isinstance(value, Part) else plain


def from_plain(family: str, value: Any, argument: str) -> Any:
    """The way back from `to_plain`, of one part or a list of parts; also from what grokfast 0.1 wrote."""
    if isinstance(value, list):
        return tuple(from_plain(family, one, argument) for one in value)
    if family == "optimizer" and isinstance(value, Mapping) and value.get("kind") == "OptimizerConfig":
        fields = {name: own for name, own in value.items() if name not in ("kind", "name")}
        kind = find(family, value.get("name"), argument)
        return made(kind, {name: own for name, own in fields.items() if name in names_of(kind)}, argument)
    return chosen(family, value, argument=argument)


def shown(part: Part | None, without: Sequence[str] = ()) -> str:
    """The shortest text that `chosen` reads as this part: its name, and what differs from its kind's defaults."""
    if part is None:
        return "none"
    if part.inline:
        return "+".join(map(shown, getattr(part, part.inline)))
    said = ",".join(
        f"{name}={shown(own) if isinstance(own, Part) else repr(own)}"
        for name, own in _differing(part).items()
        if name not in without
    )
    return f"{name_of(part)}({said})" if said else name_of(part)


def _differing(part: Part) -> dict[str, Any]:
    usual = {f.name: _default(f) for f in dataclasses.fields(part)}  # type: ignore[arg-type]
    own = fields_of(part)
    return {name: own[name] for name in usual if own[name] != usual[name] or type(own[name]) is not type(usual[name])}


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def identity(value: Any) -> Any:
    """`to_plain` for a hash: without remarks, and fields that were `added` later and have their defaults."""
    if isinstance(value, (list, tuple)):
        return [identity(one) for one in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    plain = {
        f.name: identity(getattr(value, f.name))
        for f in dataclasses.fields(value)
        if not (f.metadata.get("remark") or (f.metadata.get("added") and getattr(value, f.name) == _default(f)))
    }
    return {"kind": name_of(value), **plain} if isinstance(value, Part) else plain


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every plain value by its dotted name; a part itself is there, too, as its kind's name."""
    if isinstance(value, Part) and value.inline:
        value = getattr(value, value.inline)
    if isinstance(value, tuple) and value and all(isinstance(one, Part) for one in value):
        yield name, ",".join(map(name_of, value))
        for at, one in named(value).items():
            yield from list(leaves(f"{name}.{at}", one))[1:]
    elif isinstance(value, Part) or dataclasses.is_dataclass(value):
        if isinstance(value, Part):
            yield name, name_of(value)
        for own in names_of(value):
            yield from leaves(f"{name}.{own}", getattr(value, own))
    else:
        yield name, value


def named(several: Sequence[Any]) -> dict[str, Any]:
    """Parts by their names in dotted paths: their kinds', a second one of a kind is "ema_2", and so on."""
    found: dict[str, Any] = {}
    for one in several:
        name = at = name_of(one).rpartition(":")[2].rpartition(".")[2]
        n = 1
        while at in found:
            n += 1
            at = f"{name}_{n}"
        found[at] = one
    return found


def may_vary(name: str, value: Any) -> Iterator[str]:
    """The dotted names below `name` in which runs of an ensemble may differ."""
    if isinstance(value, Part) and value.inline:
        value = getattr(value, value.inline)
    if isinstance(value, tuple):
        for at, one in named([one for one in value if isinstance(one, Part)]).items():
            yield from may_vary(f"{name}.{at}", one)
    elif isinstance(value, Part) or dataclasses.is_dataclass(value):
        both = *getattr(value, "varies", ()), *getattr(value, "differs", ())
        yield from (f"{name}.{own}" for own in both)
        for own in names_of(value):
            yield from may_vary(f"{name}.{own}", getattr(value, own))
