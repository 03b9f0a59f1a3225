"""Value classes like those of ``dataclasses``, but made when they are first used.

``@dataclass(frozen=True)`` of the standard library imports ``inspect`` and compiles six functions for each class: for
the vocabulary of this package that takes as long as a whole kubectl command. Here a class costs nothing until its first
instance. To type checkers the two are one; ``dataclasses.replace``, ``fields``, ``asdict`` and ``match`` work.
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:
    _MISSING = object()

    class _Field:
        __slots__ = ("compare", "default", "factory", "repr")

        def __init__(self, default=_MISSING, factory=_MISSING, repr=True, compare=True):
            self.default, self.factory, self.repr, self.compare = default, factory, repr, compare

    def field(*, default=_MISSING, default_factory=_MISSING, repr=True, compare=True):
        """A field's default, a function that makes it, and whether it takes part in ``repr`` and ``==``."""
        return _Field(default, default_factory, repr, compare)

    def dataclass(*, frozen, slots=False):
        """A decorator; ``frozen`` must be True, and values do not inherit from each other."""
        if not frozen:
            raise TypeError("values are frozen")
        return lambda cls: _made(cls, slots)

    def replace(value, /, **changes):
        """The value with some fields changed."""
        for name in value.__values__:
            if name not in changes:
                changes[name] = getattr(value, name)
        return type(value)(**changes)

    def _made(cls, slots):
        fields = {}
        for name in getattr(cls, "__annotations__", ()):
            default = cls.__dict__.get(name, _MISSING)
            fields[name] = default if isinstance(default, _Field) else _Field(default)
        members = {key: value for key, value in cls.__dict__.items() if key not in ("__dict__", "__weakref__")}
        for name, each in fields.items():
            members.pop(name, None)
            if not slots and each.default is not _MISSING:
                members[name] = each.default
        members["__match_args__"] = tuple(fields)
        members["__values__"] = fields
        members["__dataclass_fields__"] = _StandardFields()
        members["__setattr__"], members["__delattr__"] = _refuse_set, _refuse_delete
        members["__init__"] = _compiling(fields)
        members["__replace__"] = replace
        compared = [name for name, each in fields.items() if each.compare]
        key = attrgetter(*compared) if compared else _nothing
        members.setdefault("__eq__", _equality(key))
        members.setdefault("__hash__", lambda self: hash(key(self)))
        members.setdefault("__repr__", _repr)
        if slots:
            members["__slots__"] = tuple(fields)
            members["__getstate__"], members["__setstate__"] = _get_state, _set_state
        made = type(cls)(cls.__name__, cls.__bases__, members)
        made.__qualname__ = cls.__qualname__
        return made

    def _compiling(fields):
        """An ``__init__`` that puts the real one in its own place when it is first called."""

        def __init__(self, *args, **given):
            cls = type(self)
            cls.__init__ = _initializer(cls, fields)
            cls.__init__(self, *args, **given)

        return __init__

    def _initializer(cls, fields):
        space = {"_missing": _MISSING}
        parameters, lines = [], []
        for name, each in fields.items():
            slot = cls.__dict__.get(name)
            # a slot's own setter is not stopped by __setattr__, and quicker than object's
            if hasattr(slot, "__set__"):
                space[f"_set_{name}"] = slot.__set__
                store = f"_set_{name}(self, {{}})"
            else:
                store = f"self.__dict__[{name!r}] = {{}}"
            value = name
            if each.factory is not _MISSING:
                space[f"_make_{name}"] = each.factory
                parameters.append(f"{name}=_missing")
                value = f"_make_{name}() if {name} is _missing else {name}"
            elif each.default is not _MISSING:
                space[f"_default_{name}"] = each.default
                parameters.append(f"{name}=_default_{name}")
            else:
                parameters.append(name)
            lines.append(f"    {store.format(value)}")
        source = f"def __init__(self{''.join(f', {each}' for each in parameters)}):\n" + (
            "\n".join(lines) or "    pass"
        )
        exec(source, space)  # noqa: S102 the same that dataclasses does: names come from our own classes
        return space["__init__"]

    class _StandardFields:
        """What the functions of ``dataclasses`` look for, made when they do."""

        def __get__(self, instance, cls):
            import dataclasses

            made = []
            for name, each in cls.__values__.items():
                options = {"repr": each.repr, "compare": each.compare}
                if each.factory is not _MISSING:
                    options["default_factory"] = each.factory
                elif each.default is not _MISSING:
                    options["default"] = each.default
                made.append((name, cls.__annotations__.get(name, object), dataclasses.field(**options)))
            found = dataclasses.make_dataclass(cls.__name__, made).__dataclass_fields__
            cls.__dataclass_fields__ = found
            return found

    def _equality(key):
        def __eq__(self, other):
            if other.__class__ is not self.__class__:
                return NotImplemented
            return self is other or key(self) == key(other)

        return __eq__

    def _nothing(_value):
        return ()

    def _repr(self):
        shown = (f"{name}={getattr(self, name)!r}" for name, each in self.__values__.items() if each.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _get_state(self):
        return [getattr(self, name) for name in self.__values__]

    def _set_state(self, state):
        for name, value in zip(self.__values__, state, strict=True):
            object.__setattr__(self, name, value)

    def _refuse_set(self, name, _value):
        import dataclasses

        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_delete(self, name):
        import dataclasses

        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
