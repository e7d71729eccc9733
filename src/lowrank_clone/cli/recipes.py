"""`lrc recipes`."""

from __future__ import annotations

from argparse import Namespace

from ..recipe.load import recipe_text, shipped_recipes


def run(arguments: Namespace) -> None:
    """`lrc recipes [NAME]`"""
    if arguments.name:
        print(recipe_text(arguments.name), end="")
        return
    names = shipped_recipes()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {_summary(recipe_text(name))}")
    print("\n`lrc recipes NAME` prints one; `lrc train NAME section.key=value` takes it with changes.")


def _summary(text: str) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    sentence, _, _ = " ".join(lines).partition(". ")
    return sentence.rstrip(".") + "."
