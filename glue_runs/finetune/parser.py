"""Parses command lines and argument files, both checked by argparse, with a help of one or two screens."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..errors import InputError
from ..files import check_is_file
from ..redaction import printable, report_error


class Parser(HfArgumentParser):
    """Parser of arguments that are dataclass fields, given by their full names.

    Args:
        dataclass_types: as for `HfArgumentParser`.
        groups: names of fields by the title of their group in the help.
        rest: title of the group of all other fields, which only `--help_training` lists; None if there are none.
        kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        dataclass_types: Any,
        groups: Mapping[str, Collection[str]] | None = None,
        rest: str | None = None,
        **kwargs: Any,
    ) -> None:
        options = {"allow_abbrev": False, "formatter_class": _HelpFormatter, **kwargs}
        super().__init__([], **options)
        self._group_of: dict[str, Any] = {}
        for title, names in (groups or {}).items():
            self._group_of |= dict.fromkeys(names, self.add_argument_group(title))
        self._rest = None if rest is None else self.add_argument_group(rest)
        if rest is not None:
            self.add_argument("--help_training", action=_HelpTraining, help=f"Also list the {rest}.")
        alone = isinstance(dataclass_types, type)
        self.dataclass_types = [dataclass_types] if alone else list(dataclass_types)
        for dataclass_type in self.dataclass_types:
            self._add_dataclass_arguments(dataclass_type)

    def _parse_dataclass_field(self, parser: Any, field: dataclasses.Field[Any]) -> None:  # type: ignore[override]
        super()._parse_dataclass_field(self._group_of.get(field.name, self._rest or parser), field)

    def format_help(self) -> str:
        """The help without the arguments of the rest."""
        groups = self._action_groups
        self._action_groups = [group for group in groups if group is not self._rest]
        try:
            return super().format_help()
        finally:
            self._action_groups = groups

    def format_whole_help(self) -> str:
        """The help with all arguments."""
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage of some 150 arguments that argparse would print first."""
        sys.exit(report_error(f"{message} (see --help)", 2))

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse does, but text that is not UTF-8, and `--name=--` for a single value, are errors."""
        for word in args[0] if args and args[0] is not None else sys.argv[1:]:
            if printable(word) != word:
                self.error(f"{printable(word)!r} is not UTF-8 text: rename it.")
        values, rest = super().parse_known_args(*args, **kwargs)
        for name, value in vars(values).items():
            if value == [] != self.get_default(name):
                self.error(f"argument --{name}: expected one argument")
        return values, rest

    def into_dataclasses(self, argv: list[str]) -> tuple[Any, ...]:
        """As `parse_args_into_dataclasses`, but unknown arguments are errors.

        A `.args` file next to the program is not read: it would change the training but not the identity of a run.

        Raises:
            InputError: a dataclass refuses a value.
        """
        values = vars(self.parse_args(argv))
        return tuple(self.construct(dataclass_type, values) for dataclass_type in self.dataclass_types)

    @staticmethod
    def construct(dataclass_type: type, values: Mapping[str, Any]) -> Any:
        """An instance of the dataclass from the parsed values; `InputError` if it refuses one of them."""
        names = {field.name for field in dataclasses.fields(dataclass_type) if field.init}
        try:
            return dataclass_type(**{name: value for name, value in values.items() if name in names})
        except Exception as error:  # TrainingArguments raises errors of any kind
            raise InputError(f"{error}") from error

    def given(self, argv: list[str]) -> dict[str, Any]:
        """Values of the arguments that the command line gives, by name, in whichever spelling."""
        defaults = argparse.Namespace(**dict.fromkeys(self._names, _NOT_GIVEN))
        values = vars(self._without_required.parse_args(argv, defaults))
        return {name: value for name, value in values.items() if value is not _NOT_GIVEN}

    @cached_property
    def _names(self) -> list[str]:
        return [field.name for each in self.dataclass_types for field in dataclasses.fields(each) if field.init]

    @cached_property
    def _without_required(self) -> Parser:
        parser = Parser(self.dataclass_types)
        for action in parser._actions:
            action.required = False
        return parser

    def words(self, path: str) -> list[str]:
        """The command line that is equivalent to a JSON or YAML file.

        Raises:
            InputError: the file does not map names to values, or gives a name more than once.
        """
        try:
            check_is_file(Path(path))
            loader = _Loader(_as_yaml(Path(path).read_text(encoding="utf-8")))
            return self._words(loader, loader.get_single_node())
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f"{error}") from error

    def _words(self, loader: _Loader, node: yaml.Node | None) -> list[str]:
        if not isinstance(node, yaml.MappingNode):
            raise InputError("the file must map names to values.")
        _check_unique(str(key.value) for key, _ in node.value)
        words: list[str] = []
        for key, value in node.value:
            name = str(key.value).replace("-", "_")
            if isinstance(value, yaml.ScalarNode):
                words += _scalar(name, value)
            elif isinstance(value, yaml.SequenceNode) and name not in _JSON_LISTS:
                if len(value.value) != 1 and not self._takes_several(name):
                    raise InputError(f"{name} takes one value, not a list.")
                words += [f"--{name}", *(_item(name, item) for item in value.value)]
            else:
                words.append(f"--{name}={json.dumps(loader.construct_object(value, deep=True))}")
        return words

    def _takes_several(self, name: str) -> bool:
        action = self._option_string_actions.get(f"--{name}")
        return action is not None and action.nargs == "+"


class FileParser(Parser):
    """A parser of arguments from a file, which raises `InputError`; the caller adds the name of the file."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


_NOT_GIVEN = object()

_JSON_LISTS = {"lbe_target_modules"}
"""Lists that are given as JSON on the command line."""


class _HelpTraining(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> None:
        print(parser.format_whole_help(), end="")
        parser.exit()


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows one spelling of each argument, its default after its help, and the description unchanged."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=119)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = self._format_args(action, _type_name(action)) if action.nargs != 0 else ""
        return f"{_long(action)} {values}".strip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        names_it = "default" in (action.help or "").lower()
        if action.default in (None, argparse.SUPPRESS) or action.nargs == 0 or action.required or names_it:
            return action.help
        return f"{action.help or ''} (default: {_words_of_default(action.default)})"


def _long(action: argparse.Action) -> str:
    return next((option for option in action.option_strings if option.startswith("--")), action.option_strings[0])


def _words_of_default(value: Any) -> str:
    items = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(str(item).lower() if isinstance(item, bool) else str(item) for item in items).replace("%", "%%")


def _type_name(action: argparse.Action) -> str:
    if action.choices is not None:
        return "{" + ",".join(str(choice) for choice in action.choices) + "}"
    return {"int": "INT", "float": "FLOAT", "string_to_bool": "BOOL"}.get(getattr(action.type, "__name__", ""), "TEXT")


def _check_unique(names: Iterable[str]) -> None:
    """Raise an `InputError` if two names are spellings of the same one."""
    for name, count in Counter(name.replace("-", "_") for name in names).items():
        if count > 1:
            raise InputError(f"{name} is given more than once.")


def _as_yaml(text: str) -> str:
    """JSON without what YAML does not read: indentation by tabs, and pairs of surrogates for one character."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_unique(name for name, _ in pairs)
        return dict(pairs)

    try:
        return json.dumps(json.loads(text, object_pairs_hook=checked), ensure_ascii=False)
    except InputError:
        raise
    except ValueError:  # not JSON
        return text


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which `5e-5` is a number, as in YAML 1.2 and JSON, and keys are unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _check_unique(str(key.value) for key, _ in node.value)
        return super().construct_mapping(node, deep=deep)  # type: ignore[no-any-return]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _scalar(name: str, node: yaml.ScalarNode) -> list[str]:
    if node.tag == "tag:yaml.org,2002:null":
        raise InputError(f"{name} is null: leave it out to use its default.")
    return [f"--{name}={node.value}"]


def _item(name: str, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or re.match(r"-(?!\d)", node.value):
        raise InputError(f"{name} must be a list of plain values.")
    return str(node.value)
