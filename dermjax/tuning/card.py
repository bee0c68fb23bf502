"""The model card: what the model was made of, how, what it is for and what it is not for.

Markdown under the YAML head that model hubs read.
"""

import hashlib
import json
from pathlib import Path

from ml_collections import ConfigDict

from dermjax.training import writers
from dermjax.tuning import report, task
from dermjax.tuning.concepts import Concepts
from dermjax.weights import model_files

FILE = "README.md"
MODEL, LORA, KOHYA, WORDS = "model", "lora.safetensors", "lora_kohya.safetensors", "words"  # in the run folder

TEXT = """---
tags: [stable-diffusion, text-to-image, dreambooth, dermatology, synthetic-data, dermjax]
base_model: {model}
library_name: diffusers
---

# {title}

**For research only. Not a medical device: nothing that this model draws may be used to diagnose or treat anyone.**

DreamBooth tuning by dermjax of `{model}` (digest {origin}), in diffusers' layout.

## Intended use

Synthetic skin lesions for research on classifiers: to be curated, marked as synthetic, used for training only, and
tried against real data in an experiment with controls. Not for validation or test sets, not for teaching diagnosis, not
for showing patients. The model may draw what its training images do not support; a class word in a prompt is no
diagnosis. Whether images resemble training images too closely is for `dermjax curate` to say.

## Use

In diffusers, without dermjax:

```python
{use}
```

## Training data

{data}

Data digest (SHA-256 over the images' own, in order): `{digest}`
Licences of the images: {licences}. The licence of the base model holds for this one as well; a data set that may not
be used commercially leaves a model that may not either.

## What it learnt

{verdict}

![losses]({curves})

{sheet}
## Prompts

{prompts}

## Config

```json
{config}
```
"""


def text(workdir: Path, config: ConfigDict, training: Concepts, validation: Concepts, base: str) -> str:
    """Returns the card of a finished run; base is the digest of the base model."""
    tuned, held_out = report.counts(training), report.counts(validation)
    rows = [f"| {label} | {tuned[label]} | {held_out[label]} |" for label in sorted(tuned)]
    digests = "".join(record.sha256 for _, record in training.sources)
    licences = sorted({record.licence or "not stated" for _, record in training.sources})
    grids = [path.relative_to(workdir) for path in figures(workdir) if path.name != report.CURVES]
    return TEXT.format(
        model=config.model,
        title=" and ".join(sorted(tuned)),
        origin=base,
        data="\n".join(["| class | tuned on | held out |", "|---|---|---|", *rows]),
        digest=hashlib.sha256(digests.encode()).hexdigest(),
        licences=", ".join(licences),
        verdict=report.verdict(writers.read(workdir / "metrics.jsonl")),
        curves=report.CURVES,
        sheet="".join(f"![samples of step {int(path.stem)}, all synthetic]({path})\n" for path in grids),
        prompts="\n".join(f"- {prompt}" for prompt in sorted(set(training.prompts))),
        config=settings(config),
        use=usage(workdir, config.model, min(training.prompts)),
    )


def usage(workdir: Path, base: str, prompt: str) -> str:
    """Returns the lines of Python that make an image in diffusers: of the model, or of its base with what it learnt."""

    def quote(text: str | Path) -> str:
        return json.dumps(str(text), ensure_ascii=False)

    lines = ["from diffusers import StableDiffusionPipeline", ""]
    if (workdir / MODEL).exists():
        lines += [f"pipeline = StableDiffusionPipeline.from_pretrained({quote(workdir / MODEL)})"]
    else:
        path = model_files.locate(base)
        load = "from_single_file" if path.is_file() else "from_pretrained"
        lines += [f"pipeline = StableDiffusionPipeline.{load}({quote(path)})"]
        if (workdir / LORA).exists():
            lines += [f"pipeline.load_lora_weights({quote(workdir / LORA)})"]
        for word in sorted((workdir / WORDS).glob("*.safetensors")):
            lines += [f"pipeline.load_textual_inversion({quote(word)})"]
    return "\n".join([*lines, f"image = pipeline({quote(prompt)}).images[0]"])


def settings(config: ConfigDict) -> str:
    """Returns the config as the card shows it, by which a run recognises its card."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def figures(workdir: Path) -> list[Path]:
    """Returns the images that the card shows: the curves and the newest samples."""
    return [workdir / report.CURVES, *list(task.sample_grids(workdir).values())[-1:]]
