"""An interpreter of pickle's instructions that cannot run anything.

It reads protocols 2 to 5 from a file and gives back plain containers, text, numbers and the
stand-ins of `pickle_values`. Every limit is checked before memory is taken, and the bytes of
tensors are stepped over, so refusing a file of any size takes a fraction of a second.

The instructions: the standard library's `pickletools`, which documents each.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from tsm_jax.weights.pickle_values import GLOBALS, Blob, Refused, build, call, quoted, set_item

MAX_INSTRUCTIONS = 150_000  # ResNet-152 with its optimizer state takes 43,000
MAX_STACK = 50_000  # values pushed and not yet put into a container
MAX_OPEN_MARKS = 64
MAX_INLINE_BYTES = 256  # longer text and bytes become a `Blob`
MAX_INLINE_TOTAL = 4 * 2**20
MAX_LINE = 256
PROTOCOLS = range(2, 6)

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class Machine:
    """Interprets one pickle.

    Args:
        file: positioned at the pickle's first byte, seekable.
        size: number of bytes from there to the end of the file.
    """

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size
        self._position = 0
        self._frame_end: int | None = None
        self._inline_left = MAX_INLINE_TOTAL
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack at the open marks
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle describes.

        Raises:
            Refused: for everything that a weight file does not need, and for damage.
        """
        self._protocol()
        for _ in range(MAX_INSTRUCTIONS):
            name = self._next_instruction()
            if name == "STOP":
                return self._stop()
            step = _STEPS.get(name)
            if step is None:
                raise Refused(f"it uses the pickle instruction {name}, which no weight file needs")
            step(self)
            if len(self._stack) > MAX_STACK:
                raise Refused(f"it keeps more than {MAX_STACK:,} values open at once")
        raise Refused(f"it has more than {MAX_INSTRUCTIONS:,} pickle instructions")

    def _protocol(self) -> None:
        if self._take(1) != b"\x80":
            raise Refused("it is not a pickle of protocol 2 to 5")
        version = self._take(1)[0]
        if version not in PROTOCOLS:
            raise Refused(f"it is a pickle of protocol {version}; 2 to 5 are read")

    def _next_instruction(self) -> str:
        if self._position == self._frame_end:
            self._frame_end = None
        code = self._take(1)[0]
        if code not in _NAMES:
            raise Refused(f"byte {self._position - 1:,} is not a pickle instruction")
        return _NAMES[code]

    def _stop(self) -> Any:
        value = self._pop()
        if self._stack or self._marks:
            raise Refused("it ends in the middle of a container")
        if self._position != self._size:
            raise Refused(f"{self._size - self._position:,} bytes follow its end")
        return value

    # Reading. Frames are promises about lengths; they are held to, as Python's own reader does.

    def _advance(self, count: int) -> None:
        end = self._size if self._frame_end is None else self._frame_end
        if count > end - self._position:
            if end == self._size:
                raise Refused("it is cut off in the middle; download it again")
            raise Refused("an instruction crosses the end of its frame")
        self._position += count

    def _take(self, count: int) -> bytes:
        self._advance(count)
        data = self._file.read(count)
        if len(data) != count:
            raise Refused("it became shorter while it was read")
        return data

    def number(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        line = self._file.readline(MAX_LINE)
        self._advance(len(line))
        if not line.endswith(b"\n"):
            raise Refused("it names a global without an end")
        return line[:-1].decode("ascii", "replace")

    def frame(self) -> None:
        length = self.number("<Q")
        if self._frame_end is not None:
            raise Refused("it has a frame inside a frame")
        if length > self._size - self._position:
            raise Refused("it is cut off in the middle; download it again")
        self._frame_end = self._position + length

    # The stack.

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Refused("it takes a value that is not there")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self.push(value)
        return value

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise Refused("it closes a container that was not opened")
        height = self._marks.pop()
        values = self._stack[height:]
        del self._stack[height:]
        return values

    def mark(self) -> None:
        if len(self._marks) == MAX_OPEN_MARKS:
            raise Refused(f"it nests deeper than {MAX_OPEN_MARKS} containers")
        self._marks.append(len(self._stack))

    def pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def pop_mark(self) -> None:
        self._pop_to_mark()

    def dup(self) -> None:
        self.push(self._top())

    # Numbers, text and bytes.

    def long(self, layout: str) -> None:
        length = self.number(layout)
        if not 0 <= length <= 8:
            raise Refused("it holds an integer of more than 64 bits")
        self.push(int.from_bytes(self._take(length), "little", signed=True))

    def run_of_bytes(self, layout: str, *, is_text: bool, utf8: bool) -> None:
        length = self.number(layout)
        if length < 0:
            raise Refused("it has a text of negative length")
        if length > MAX_INLINE_BYTES:
            offset = self._position
            self._advance(length)
            self._file.seek(length, 1)
            self.push(Blob(offset, length, is_text, utf8))
            return
        self._inline_left -= length
        if self._inline_left < 0:
            raise Refused(f"its names take more than {MAX_INLINE_TOTAL >> 20} MiB")
        data = self._take(length)
        self.push(_decoded(data, "utf-8" if utf8 else "latin-1") if is_text else data)

    # Containers.

    def tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def tuple_to_mark(self) -> None:
        self.push(tuple(self._pop_to_mark()))

    def extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise Refused("it appends to something that is not a list")
        target.extend(values)

    def append(self) -> None:
        self.extend([self._pop()])

    def appends(self) -> None:
        self.extend(self._pop_to_mark())

    def set_one_item(self) -> None:
        value, key = self._pop(), self._pop()
        set_item(self._top(), key, value)

    def set_items(self) -> None:
        values = self._pop_to_mark()
        if len(values) % 2:
            raise Refused("it has a dictionary key without a value")
        target = self._top()
        for key, value in zip(values[::2], values[1::2], strict=True):
            set_item(target, key, value)

    # The memo: values that are met again.

    def remember(self, index: int) -> None:
        if index > MAX_INSTRUCTIONS:
            raise Refused("it numbers its values beyond the number of its instructions")
        self._memo[index] = self._top()

    def memoize(self) -> None:
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        if index not in self._memo:
            raise Refused("it refers to a value that it does not hold")
        self.push(self._memo[index])

    # Globals: markers that only `call` and `build` understand.

    def find_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("it names a global by something that is not text")
        if (module, name) not in GLOBALS:
            asked = quoted(f"{module}.{name}")
            raise Refused(f"it asks for {asked}, which no weight file needs: do not trust it")
        self.push(GLOBALS[module, name])

    def stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self.find_global(module, name)

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self.push(call(function, arguments))

    def build(self) -> None:
        state = self._pop()
        build(self._top(), state)


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise Refused("it holds a text that is not UTF-8") from None


_UTF8_TEXT = {"is_text": True, "utf8": True}
_LATIN1_TEXT = {"is_text": True, "utf8": False}  # Python 2's `str`
_BYTES = {"is_text": False, "utf8": False}

# Whatever is not listed is refused: objects (INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT*), persistent
# ids, out-of-band buffers, sets, and the text instructions of protocols 0 and 1.
_STEPS: dict[str, Callable[[Machine], None]] = {
    "FRAME": Machine.frame,
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": Machine.pop_mark,
    "DUP": Machine.dup,
    "NONE": lambda m: m.push(None),
    "NEWTRUE": lambda m: m.push(True),
    "NEWFALSE": lambda m: m.push(False),
    "BININT": lambda m: m.push(m.number("<i")),
    "BININT1": lambda m: m.push(m.number("<B")),
    "BININT2": lambda m: m.push(m.number("<H")),
    "LONG1": lambda m: m.long("<B"),
    "LONG4": lambda m: m.long("<i"),
    "BINFLOAT": lambda m: m.push(m.number(">d")),
    "SHORT_BINUNICODE": lambda m: m.run_of_bytes("<B", **_UTF8_TEXT),
    "BINUNICODE": lambda m: m.run_of_bytes("<I", **_UTF8_TEXT),
    "BINUNICODE8": lambda m: m.run_of_bytes("<Q", **_UTF8_TEXT),
    "SHORT_BINSTRING": lambda m: m.run_of_bytes("<B", **_LATIN1_TEXT),
    "BINSTRING": lambda m: m.run_of_bytes("<i", **_LATIN1_TEXT),
    "SHORT_BINBYTES": lambda m: m.run_of_bytes("<B", **_BYTES),
    "BINBYTES": lambda m: m.run_of_bytes("<I", **_BYTES),
    "BINBYTES8": lambda m: m.run_of_bytes("<Q", **_BYTES),
    "BYTEARRAY8": lambda m: m.run_of_bytes("<Q", **_BYTES),
    "EMPTY_TUPLE": lambda m: m.push(()),
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "TUPLE": Machine.tuple_to_mark,
    "EMPTY_LIST": lambda m: m.push([]),
    "APPEND": Machine.append,
    "APPENDS": Machine.appends,
    "EMPTY_DICT": lambda m: m.push({}),
    "SETITEM": Machine.set_one_item,
    "SETITEMS": Machine.set_items,
    "BINPUT": lambda m: m.remember(m.number("<B")),
    "LONG_BINPUT": lambda m: m.remember(m.number("<I")),
    "MEMOIZE": Machine.memoize,
    "BINGET": lambda m: m.recall(m.number("<B")),
    "LONG_BINGET": lambda m: m.recall(m.number("<I")),
    "GLOBAL": lambda m: m.find_global(m.line(), m.line()),
    "STACK_GLOBAL": Machine.stack_global,
    "REDUCE": Machine.reduce,
    "BUILD": Machine.build,
}
