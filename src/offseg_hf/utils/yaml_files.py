"""YAML as recipes have it: values of version 1.2, no key twice, and files that build on others."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """Read YAML; raises ValueError, in one line, if `text` is none or says a key twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML, got {' '.join(str(error).split())}") from None


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write `values` as YAML, a line per key; tuples become lists."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=119)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the values of both; `above` wins, key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten {"training": {"seed": 0}} to {"training.seed": 0}; what is empty has no keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        is_section = isinstance(value, Mapping)
        found |= {f"{key}.{name}": item for name, item in flat(value).items()} if is_section else {key: value}
    return found


def without(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Leave out some keys, such as "model.preset"."""
    kept = dict(values)
    for key in keys:
        section, _, rest = key.partition(".")
        if not rest:
            kept.pop(section, None)
        elif section in kept:
            kept[section] = without(kept[section], [rest])
    return kept


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of plain values: `6e-5` is a number, `no` is a word. A key stands once."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader`, or a reader of YAML 1.1, would not read as text; lists are short and stay on a line."""

    def ignore_aliases(self, data):
        return True

    def represent_sequence(self, tag, sequence, flow_style=None):
        return super().represent_sequence(tag, sequence, flow_style=True)


_Dumper.add_representer(tuple, yaml.representer.SafeRepresenter.represent_list)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.?[0-9]+)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
