"""Prompts from templates, weights, repeats and balance: what one epoch shows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermjax.data import records, templates
from dermjax.data.records import Manifest, Record
from dermjax.diffusion import schedule
from dermjax.diffusion.objective import Objective
from dermjax.errors import UserError
from dermjax.tuning import concepts

PROMPTS = {"benign": "a {label} mole", "malignant": "a {label} mole"}
ALPHA_BAR = np.linspace(0.99, 0.01, 100)
DENOISING = Objective("epsilon", ALPHA_BAR, snr_gamma=0.0, huber=0.0)
PLAIN = {"repeats": {}, "balance": False, "prior": "", "prior_weight": 1.0}


def record(i, label, **more):
    named = {"image": f"{label}{i}.png", "sha256": f"{i:064x}", "label": label, "split": "train", "source": "s"}
    return Record(**(named | {"image_manipulation": "none"} | more))


def manifest(root, benign=3, malignant=1, **more):
    found = [record(i, "benign", **more) for i in range(benign)]
    found += [record(10 + i, "malignant", **more) for i in range(malignant)]
    return Manifest(labels=("benign", "malignant"), root=root, records=tuple(found), home=root)


@pytest.mark.parametrize(
    "template, attributes, said",
    [
        ("a {label} mole", {}, "a benign mole"),
        ("a mole[ on {skin_tone.group} skin]", {"skin_tone": {"group": "dark"}}, "a mole on dark skin"),
        ("a mole[ on {skin_tone.group} skin]", {"skin_tone": {"ita": 3}}, "a mole"),
        ("a mole[ on {site}][, {sex}]", {"sex": "female", "site": ""}, "a mole, female"),
        ("{caption}", {"caption": "two large moles"}, "two large moles"),
    ],
)
def test_a_template_says_what_is_known_of_a_record(template, attributes, said):
    assert templates.fill_from_record(template, record(0, "benign", attributes=attributes)) == said


def test_a_label_of_several_words_is_taught_as_it_is_asked_for():
    known = record(0, "basal_cell_carcinoma")
    asked = templates.PromptWords(label="basal_cell_carcinoma", words={}, like=None)
    taught = templates.fill_from_record("a {label}", known)
    assert taught == templates.fill("a {label}", asked) == "a basal cell carcinoma"


def test_an_unknown_field_outside_brackets_is_named():
    with pytest.raises(UserError, match=r"benign0.png has no 'sit'; put the clause in brackets"):
        templates.fill_from_record("a mole on {sit}", record(0, "benign"))


def test_an_epoch_repeats_and_balances_classes_with_weights_of_mean_one(tmp_path):
    plain = concepts.training(manifest(tmp_path), PROMPTS, **PLAIN)
    assert plain.epoch.tolist() == [0, 1, 2, 3] and plain.prompts[3] == "a malignant mole"
    repeated = concepts.training(manifest(tmp_path), PROMPTS, **PLAIN | {"repeats": {"malignant": 2}})
    assert repeated.epoch.tolist() == [0, 1, 2, 3, 3]
    balanced = concepts.training(manifest(tmp_path, 5, 2), PROMPTS, **PLAIN | {"balance": True})
    assert balanced.epoch.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 6, 6]
    weighed = manifest(tmp_path)
    heavy = dataclasses.replace(weighed.records[3], attributes={"weight": 5})
    weighed = dataclasses.replace(weighed, records=(*weighed.records[:3], heavy))
    found = concepts.training(weighed, PROMPTS, **PLAIN | {"balance": True})
    assert found.weights[found.epoch].mean() == pytest.approx(1) and found.weights[3] == pytest.approx(
        5 * found.weights[0]
    )


def test_class_images_bring_their_own_prompt_and_weight(tmp_path):
    made = manifest(tmp_path, 2, 0, image_manipulation="synthetic", generation={"prompt": "a mole"})
    records.write(tmp_path / "prior.jsonl", made)
    asked = PLAIN | {"prior": str(tmp_path / "prior.jsonl"), "prior_weight": 0.5}
    found = concepts.training(manifest(tmp_path), PROMPTS, **asked)
    assert found.prompts[4:] == ["a mole", "a mole"] and found.epoch.tolist() == list(range(6))
    np.testing.assert_allclose(found.weights, np.array([1, 1, 1, 1, 0.5 * 2, 0.5 * 2]) * 6 / 4, rtol=1e-6)
    silent = manifest(tmp_path, 1, 0, image_manipulation="synthetic")
    records.write(tmp_path / "prior.jsonl", silent)
    with pytest.raises(UserError, match=r"benign0.png has no generation prompt"):
        concepts.training(manifest(tmp_path), PROMPTS, **asked)


def preserving(tmp_path, instances, others, weight, **changes):
    """Concepts of so many instance images, benign and malignant, and so many class images of a prior weight."""
    made = manifest(tmp_path, others, 0, image_manipulation="synthetic", generation={"prompt": "a mole"})
    records.write(tmp_path / "prior.jsonl", made)
    asked = PLAIN | {"prior": str(tmp_path / "prior.jsonl"), "prior_weight": weight} | changes
    return concepts.training(manifest(tmp_path, *instances), PROMPTS, **asked)


def slope(rows, weight):
    """The gradient of the loss of some rows, drawn by row number, for a network that is one factor a channel."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(rows, jnp.uint32))
    noise, latents = (schedule.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, i), (4, 4, 2)) for i in (0, 1))

    def loss(factor):
        t, each = jnp.asarray(rows, jnp.int32), jnp.asarray(weight)
        return DENOISING.loss(lambda x, t: x * factor[None, None, None], latents, noise, t, each)

    return np.asarray(jax.jit(jax.grad(loss))(jnp.array([0.3, -0.7])))


@pytest.mark.parametrize("changes", [{}, {"repeats": {"malignant": 3}}, {"balance": True}])
@pytest.mark.parametrize("others, weight", [(7, 0.3), (2, 1.0), (12, 2.5)])
def test_an_epoch_weighs_the_class_images_by_lambda_whatever_the_counts(tmp_path, others, weight, changes):
    found = preserving(tmp_path, (3, 2), others, weight, **changes)
    rows, made = found.epoch, found.epoch >= 5
    each = np.stack([slope([row], [1.0]) for row in range(len(found.prompts))])
    balanced = each[rows[~made]].mean(0) + weight * each[rows[made]].mean(0)
    np.testing.assert_allclose(slope(rows, found.weights[rows]), balanced, rtol=1e-5)


def test_in_batches_of_pairs_prior_preservation_is_diffusers_loss(tmp_path):
    """train_dreambooth.py: one half of a batch are instances, the other class images, each half has its own mean."""
    torch = pytest.importorskip("torch")
    found = preserving(tmp_path, (2, 1), 3, 0.4)
    rng = np.random.default_rng(0)
    predicted, noise = (rng.normal(size=(6, 4, 4, 2)).astype(np.float32) for _ in range(2))

    def loss(predicted):
        nothing = np.zeros_like(noise)
        return DENOISING.loss(lambda x, t: predicted, nothing, noise, np.zeros(6, int), found.weights)

    ours, gradient = jax.value_and_grad(loss)(predicted)
    theirs = torch.tensor(predicted, requires_grad=True)
    (instance, prior), (own, others) = torch.chunk(theirs, 2), torch.chunk(torch.tensor(noise), 2)
    total = torch.nn.functional.mse_loss(instance, own) + 0.4 * torch.nn.functional.mse_loss(prior, others)
    total.backward()
    assert float(ours) == pytest.approx(total.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "changes, attributes, said",
    [
        ({"repeats": {"benign": 0, "malignant": 0}}, {}, "every image has weight 0 or is repeated 0 times: nothing wo"),
        (
            {"repeats": {"benign": 0, "malignant": 0}, "balance": True},
            {},
            "every image has weight 0 or is repeated 0 t",
        ),
        ({"repeats": {"mailgnant": 2}}, {}, "config.concepts.repeats.mailgnant: the manifest's classes are benign, m"),
        ({}, {"weight": "heavy"}, "attributes.weight = 'heavy'; give a number"),
        ({}, {"weight": -1}, "attributes.weight = -1; give a number from 0 on"),
        ({}, {"weight": float("nan")}, "attributes.weight = nan; give a number from 0 on"),
        ({}, {"weight": float("inf")}, "attributes.weight = inf; give a number from 0 on"),
        ({}, {"weight": 0}, "every image has weight 0"),
        (
            {"repeats": {"malignant": 3}, "balance": True},
            {},
            "config.concepts.repeats.malignant = 3: config.concepts.b",
        ),
        ({"prior": "nowhere"}, {}, "nowhere"),
    ],
)
def test_bad_input_is_one_line(tmp_path, changes, attributes, said):
    with pytest.raises(UserError) as error:
        concepts.training(manifest(tmp_path, attributes=attributes), PROMPTS, **PLAIN | changes)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("prompts, said", [
    ({"benig": "a fine mole"}, "config.prompts.benig: the manifest's classes are benign, malignant"),
    ({"malignant": 5}, "config.prompts.malignant = 5: give text"),
])  # fmt: skip
def test_prompts_of_no_class_are_not_ignored(tmp_path, prompts, said):
    with pytest.raises(UserError, match=said):
        concepts.training(manifest(tmp_path), PROMPTS | prompts, **PLAIN)


def test_the_prompts_that_configs_come_with_do_no_harm_to_other_classes(tmp_path):
    others = Manifest(labels=("nevus", "bcc"), root=tmp_path, home=tmp_path,
                      records=(record(0, "nevus"), record(1, "bcc")))  # fmt: skip
    found = concepts.training(others, PROMPTS | {"nevus": "a nevus", "bcc": "a carcinoma"}, **PLAIN)
    assert found.prompts == ["a nevus", "a carcinoma"]
