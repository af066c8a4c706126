"""YAML as recipes use it: plain values, anchors and merge keys; bounded in size and depth, and no tag runs code.

What YAML 1.1 would read as a date stays text. Numbers are as long as numbers are. Aliases count as often as they are
used, so that ten lines cannot become a gigabyte.
"""

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from rlif.errors import shown

LONGEST = 200_000
"""Most characters of a text; the longest recipe that is shipped has 3,000."""

_DEEPEST = 40
_LARGEST = 20_000  # values, those behind an alias counted at each use
_LONGEST_NUMBER = 100  # characters
_TAGS = ("null", "bool", "int", "float", "merge")  # what a value may be without saying so; all else is text


class YamlError(Exception):
    """Not YAML, or none that a recipe may hold. The message is one line and says where."""


def read_yaml(text: str) -> Any:
    """The one document of a text. Raises `YamlError`."""
    if len(text) > LONGEST:
        raise YamlError(f"{len(text):,} characters; a recipe has at most {LONGEST:,}")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    """Strict where YAML is lax: of a key that stands twice the first would be forgotten without a word."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth, self._size = 0, 0
        self._sizes: dict[int, int] = {}  # of the nodes that are complete, by their id

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """What a value is: one that YAML would read as a date or the like is text."""
        tag: str = super().resolve(kind, value, implicit)
        plain = kind is not yaml.ScalarNode or not any(implicit or ()) or tag.rpartition(":")[2] in _TAGS
        return tag if plain else self.DEFAULT_SCALAR_TAG

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, outer = self.peek_event().start_mark, self._size
        alias = self.check_event(yaml.AliasEvent)
        self._size, self._depth = 1, self._depth + 1
        if self._depth > _DEEPEST:
            raise ComposerError(None, None, f"more than {_DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        if alias and id(node) not in self._sizes:
            raise ComposerError(None, None, "an alias inside of what it stands for", mark)
        size = self._sizes[id(node)] if alias else self._size
        self._sizes[id(node)] = size
        self._size, self._depth = outer + size, self._depth - 1
        if self._size > _LARGEST:
            raise ComposerError(None, None, f"more than {_LARGEST:,} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ComposerError(None, None, "a key that is no plain value", key.start_mark)
            if (key.tag, key.value) in seen:
                raise ComposerError(None, None, f"{shown(key.value)} stands twice", key.start_mark)
            if not key.tag.endswith(":merge"):
                seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and len(str(node.value)) > _LONGEST_NUMBER:
            raise ConstructorError(None, None, f"{shown(node.value)} is too long for a number", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise ConstructorError(None, None, f"{shown(node.value)} is no {kind}", node.start_mark) from error
