"""Read a pickle as data: containers and scalars are built, a global stays a name and a call stays a note of that name.

`torch.load(weights_only=True)` would do less. It refuses a file for one name that it does not know: that names can be
asked for (`get_unsafe_globals_in_checkpoint`) and stubbed helps with zip archives only, not with the older stream, and
not with names that are called in another way than by REDUCE. And it hashes what a pickle has for a key, so that two
kilobytes keep it busy forever: a tuple of twice a tuple of twice a tuple ... (tests/conversion/test_inert_pickle.py).

The standard library's `pickletools` only decodes the opcodes; nothing here imports a module, looks up an attribute or
calls what a pickle names, so there is nothing to attack but the containers below. Format:
https://github.com/python/cpython/blob/3.11/Lib/pickletools.py.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import IO, Any


class BrokenPickleError(ValueError):
    """The bytes are not one whole, well-formed pickle."""


@dataclass(frozen=True)
class Global:
    """Name of a class or function (`module.name`) as a pickle spells it; never looked up."""

    name: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for an object whose class or factory `name` is not one of the caller's builders; holds nothing of it."""

    name: str


LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# A set becomes a list: nobody asks for its members, and hashing them could be made arbitrarily slow.
EMPTY_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
FROM_MARK = {"LIST": list, "TUPLE": tuple, "FROZENSET": list}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CALLS = frozenset("REDUCE NEWOBJ NEWOBJ_EX OBJ INST".split())
ITEMS = frozenset("APPEND APPENDS ADDITEMS SETITEM SETITEMS".split())
IGNORED = frozenset("PROTO FRAME STOP".split())
# Without these two limits a memoized giant could be copied again by every two bytes of the file.
MAX_NAME_LENGTH = 1000
MAX_ARGUMENTS = 16
KEY_TYPES = (str, int, float, bytes, type(None))

Builder = Callable[..., object]


class InertUnpickler:
    """The stack machine of one pickle.

    `builders` maps the few global names a caller understands to its own functions, which get the arguments;
    every other call leaves an `Opaque`. `persistent_load` gets each persistent id (in PyTorch's files: a storage).
    """

    def __init__(self, builders: Mapping[str, Builder], persistent_load: Callable[[object], object]):
        self.builders = builders
        self.persistent_load = persistent_load
        self.stack: list[object] = []
        self.outer_stacks: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def load(self, stream: IO[bytes] | mmap) -> object:
        """Return the object of the pickle at the stream's position, which afterwards is right behind it."""
        readable: Any = stream  # an mmap is no IO to type checkers
        try:
            for opcode, argument, _ in pickletools.genops(readable):
                self._step(opcode.name, argument)
            return self.stack.pop()
        except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
            raise BrokenPickleError(f"{type(error).__name__}: {error}") from error

    def _step(self, opcode: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        if opcode in LITERALS:
            push(argument)
        elif opcode in CONSTANTS:
            push(CONSTANTS[opcode])
        elif opcode in EMPTY_CONTAINERS:
            push(EMPTY_CONTAINERS[opcode]())
        elif opcode in FROM_MARK:
            self._push_from_mark(FROM_MARK[opcode])
        elif opcode == "DICT":
            self._push_from_mark(lambda items: _with_items({}, items))
        elif opcode in SHORT_TUPLES:
            count = SHORT_TUPLES[opcode]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif opcode in ITEMS:
            self._extend_top(opcode)
        elif opcode in CALLS:
            self._call(opcode, argument)
        elif opcode == "BUILD":
            pop()  # the state of an object nobody reads
        elif opcode == "GLOBAL":
            push(_global(*argument.split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            name, module = pop(), pop()
            push(_global(module, name))
        elif opcode == "BINPERSID":
            push(self.persistent_load(pop()))
        elif opcode not in IGNORED:
            self._memory(opcode, argument)

    def _memory(self, opcode: str, argument: Any) -> None:
        """Do what concerns marks, the memo and the top of the stack."""
        if opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.outer_stacks.append(self.stack)
            self.stack = []
        elif opcode == "POP_MARK" or (opcode == "POP" and not self.stack):
            self._pop_mark()
        elif opcode == "POP":
            self.stack.pop()
        elif opcode == "DUP":
            self.stack.append(self.stack[-1])
        else:
            raise ValueError(f"opcode {opcode} has no place in a checkpoint")

    def _pop_mark(self) -> list[object]:
        items, self.stack = self.stack, self.outer_stacks.pop()
        return items

    def _push_from_mark(self, build: Builder) -> None:
        items = self._pop_mark()
        self.stack.append(build(items))

    def _extend_top(self, opcode: str) -> None:
        if opcode == "APPEND":
            items = [self.stack.pop()]
        elif opcode == "SETITEM":
            items = self.stack[-2:]
            del self.stack[-2:]
        else:
            items = self._pop_mark()
        top = self.stack[-1]
        if isinstance(top, dict) and opcode.startswith("SETITEM"):
            _with_items(top, items)
        elif isinstance(top, list) and not opcode.startswith("SETITEM"):
            top.extend(items)
        elif not isinstance(top, Opaque):
            raise TypeError(f"{opcode} on {type(top).__name__}")

    def _call(self, opcode: str, argument: Any) -> None:
        function: object
        arguments: object
        if opcode == "INST":
            function, arguments = _global(*argument.split(" ", 1)), self._pop_mark()
        elif opcode == "OBJ":
            function, *arguments = self._pop_mark()
        else:
            if opcode == "NEWOBJ_EX":
                self.stack.pop()  # keyword arguments: only classes of others take them
            arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global | Opaque):
            raise TypeError(f"{opcode} calls {type(function).__name__}")
        builder = self.builders.get(function.name) if isinstance(function, Global) else None
        if builder is not None and isinstance(arguments, tuple | list) and len(arguments) <= MAX_ARGUMENTS:
            self.stack.append(builder(*arguments))
        else:
            self.stack.append(Opaque(function.name))


def _global(module: object, name: object) -> Global:
    if not (isinstance(module, str) and isinstance(name, str) and len(module) + len(name) <= MAX_NAME_LENGTH):
        raise ValueError("a global whose module and name are not two short strings")
    return Global(f"{module}.{name}")


def _with_items(mapping: dict, items: list[object]) -> dict:
    """Return `mapping` with the alternating keys and values of `items`; a key that is no scalar is left out."""
    pairs = zip(items[::2], items[1::2], strict=True)
    mapping.update((key, value) for key, value in pairs if isinstance(key, KEY_TYPES))
    return mapping
