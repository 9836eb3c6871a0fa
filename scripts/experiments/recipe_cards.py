"""Writes a card for each CIFAR recipe of the paper: the command, the paper's figures, what is doubtful.

    python scripts/experiments/recipe_cards.py      # into model_cards/recipes/

They make no claim of ours: nobody has trained these recipes with this library yet. A card with figures of our own comes
from scripts/release.py, once someone has.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from famus_hf.cli.config_files import RECIPES, recipe_names
from famus_hf.data.sources.load_source import HUB_DATASETS

CARDS = Path(__file__).parents[2] / "model_cards" / "recipes"
TEXT = """---
{metadata}
---

# {name}

**Figures of the paper, not ours.** Nobody has trained this recipe with `famus_hf` yet, and there is no checkpoint.

| | |
|---|---|
| the paper ([FaMUS](https://huggingface.co/papers/2104.15092), CVPR 2021) reports | {paper} |
| settings from | {source} |

To train it, with {baselines} beside it; then to lay out and check what goes to the Hub:

```bash
accelerate launch scripts/run_famus.py --recipe {name} --compare
python scripts/release.py --run outputs/{dataset}
```

## Settings

| | |
|---|---|
{settings}

## Doubts

{doubts}
"""


def card_of(name: str) -> str | None:
    """Return the card of a recipe; None where it is of other data than CIFAR, or not of the paper."""
    recipe: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    about, dataset = recipe.pop("about"), recipe["dataset_name"]
    if not dataset.startswith("cifar"):
        return None
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        datasets=[HUB_DATASETS[dataset][0]],
        tags=["famus", "noisy-labels", "meta-learning"],
    )
    base = "DivideMix and MW-Net on all layers" if recipe.get("two_networks") else "the base method"
    return TEXT.format(
        metadata=metadata.to_yaml(),
        name=name,
        paper=about["paper"],
        source=about["source"],
        dataset=dataset,
        baselines=f"plain training{', ' if recipe.get('two_networks') else ' and '}{base}",
        settings="\n".join(f"| `{key}` | {value} |" for key, value in recipe.items()),
        doubts="\n".join(f"- {doubt}" for doubt in about["doubts"]),
    )


def main() -> None:
    CARDS.mkdir(parents=True, exist_ok=True)
    for name in recipe_names():
        card = card_of(name)
        if card is not None:
            ModelCard(card)  # raises where the metadata can't be read
            (CARDS / f"{name}.md").write_text(card, encoding="utf-8")
            print(f"wrote {CARDS / name}.md", file=sys.stderr)


if __name__ == "__main__":
    main()
