"""What the numbers of a study cannot say, as far as the study itself knows."""

from ml_collections import ConfigDict

from dermjax.study import arms, plots
from dermjax.study.findings import Found, Group
from dermjax.study.trial import Material

FEW_SEEDS = 3


def told(found: Found, config: ConfigDict, materials: list[Material]) -> list[str]:
    """Returns a sentence for each limit that applies."""
    real = materials[0].real
    sentences = []
    if any(group[1] for group in found.figures):
        sentences.append(
            f"The generator was tuned on the whole training split ({len(real.split('train'))} images), the few-shot "
            "classifiers see a part of it: a gain there may come from real images that only the generator saw."
        )
    if len(config.seeds) < FEW_SEEDS:
        sentences.append(f"With {len(config.seeds)} seeds little is known of the chance in training.")
    if any(config.classifiers[name].recipe != "full" for name in config.classifiers):
        sentences.append("The networks' lower parts were frozen; fine-tuning all of them may answer otherwise.")
    scarce = [group for group in found.figures if is_scarce(group, materials[0])]
    if scarce:
        names = ", ".join(dict.fromkeys(f"{plots.words(group[2])} with {plots.shots(group[1])}" for group in scarce))
        sentences.append(f"There are fewer synthetic images than the ratio asks for in {names}: they come more often.")
    return sentences


def is_scarce(group: Group, material: Material) -> bool:
    """Whether a hybrid arm asks for more synthetic images of a class than there are."""
    ratio = arms.ratio_of(group[2])
    if ratio is None:
        return False

    def count(manifest, label: str) -> int:
        return sum(record.label == label for record in manifest.split("train"))

    return any(
        ratio * (group[1] or count(material.real, label)) > count(material.synthetic, label)
        for label in material.real.labels
    )
