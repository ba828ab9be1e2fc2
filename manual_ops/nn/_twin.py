"""Let ``isinstance`` ask what it asks where ``nn`` is ``torch.nn``."""

from abc import ABCMeta
from typing import Any

from torch import nn


class Twin(ABCMeta):  # not type: a layer may be mixed with an abstract class, as torch.nn's may
    """Class of a layer's class here: instances of its torch.nn twin count as its own.

    Layers that torch.nn makes itself, in ``nn.TransformerEncoderLayer`` or a model of another
    library, are of torch.nn's classes, and code that looks for an ``nn.BatchNorm2d`` among them
    means those too. What a layer is can still be told by ``type``. Classes derived from the
    twins are ordinary ones.
    """

    def __init__(cls, name: str, bases: tuple[type, ...], *args: Any, **kwargs: Any) -> None:
        super().__init__(name, bases, *args, **kwargs)
        twin = getattr(nn, name, None)
        # What is derived from the class is derived from the twin as well.
        cls._asked_for = twin if twin in bases else cls

    def __instancecheck__(cls, instance: Any) -> bool:
        return type.__instancecheck__(cls._asked_for, instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return type.__subclasscheck__(cls._asked_for, subclass)
