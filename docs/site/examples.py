"""Let griffe, which knows `Examples:` only, read our `Example:` as a section of code."""

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames the heading before docstrings are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
