"""Where every parameter of the shipped recipes lies, on the chips that each recipe is meant for: golden/RECIPE.txt.

`PYTHONPATH=tests python tests/sharding/test_golden.py` writes them anew; what changed shows in the difference.
"""

import pathlib

import pytest
from configs.test_recipes import CONFIGS, SHIPPED, models, resolved

from chopjax.models.parameters import count
from chopjax.sharding.table import format_table, table

GOLDEN = pathlib.Path(__file__).parent / "golden"
ANY_MODEL = {"base", "quickstart"}  # recipes for any source, and for one device


def tables(name: str) -> str:
    """The source in bfloat16, as it teaches, and the student of each round in float32, as it learns."""
    chosen, chips = resolved(name).mesh, SHIPPED[name].chips
    shape = chosen.shape(chips)
    said = [f"{chips} chips: " + ", ".join(f"{axis}={size}" for axis, size in shape.items() if size > 1)]
    for index, config in enumerate(models(name)):
        role, width = ("student", 4) if index else ("teacher", 2)
        said.append(f"\n{role}, {count(config):,} parameters of {width} bytes")
        said.append(format_table(table(config, shape, chosen.fallbacks, width)))
    return "\n".join(said) + "\n"


@pytest.mark.parametrize("name", SHIPPED)
def test_as_in_the_golden_file(name: str) -> None:
    assert tables(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_recipe_has_one() -> None:
    recipes = {file.stem for file in CONFIGS.glob("*.py")} - ANY_MODEL
    assert {file.stem for file in GOLDEN.iterdir()} == recipes == set(SHIPPED)


if __name__ == "__main__":
    for recipe in SHIPPED:
        (GOLDEN / f"{recipe}.txt").write_text(tables(recipe), encoding="utf-8")
