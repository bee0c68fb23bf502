"""On photographs, with a real network: distances rank faults, copies are recovered where a hash misses them."""

import io
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageFilter

from dermjax import reconstruction
from dermjax.data import images
from dermjax.data.leaks import copies
from dermjax.data.phantoms.painting import phantom
from dermjax.evaluation import features
from dermjax.evaluation.images import fidelity, memorisation
from dermjax.weights import diffusers, image_encoders
from dermjax.weights.tensor_files import SHIPPED

SHARED = Path(__file__).parents[4] / "shared"
DINOV2, PHOTOGRAPHS = SHARED / "weights/dinov2_vits14", SHARED / "data/dermoscopy"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DINOV2.is_dir() and PHOTOGRAPHS.is_dir()), reason="no photographs or no real weights"),
]
EACH = 400


@pytest.fixture(scope="module")
def network():
    return features.read(str(DINOV2))


@pytest.fixture(scope="module")
def photographs():
    """uint8 [2 EACH, 224, 224, 3] of training photographs, in an order of chance."""
    paths = sorted((PHOTOGRAPHS / "train").glob("*/*.jpg"))
    chosen = np.random.default_rng(0).permutation(len(paths))[: 2 * EACH]
    return np.stack([images.load(paths[at], image_encoders.SIZE) for at in chosen])


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def blur(image):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(3)))


def noise(image):
    rng = np.random.default_rng(int(image.sum()))
    return np.clip(image + rng.normal(0, 40, image.shape), 0, 255).astype(np.uint8)


def test_every_distance_ranks_faults_by_how_bad_they_are(network, photographs, capsys):
    """Beside other photographs; 400 cannot tell JPEG 60 from none, so that it is ranked beside the same ones."""
    reference = network.of_pixels(photographs[:EACH], EACH)[:, :384]
    worse = {"real": lambda image: image, "JPEG 60": jpeg, "blur": blur, "noise": noise}

    def faults(pictures):
        return {name: network.of_pixels(map(change, pictures), EACH)[:, :384] for name, change in worse.items()}

    sets = faults(photographs[EACH:])
    sets["phantoms"] = network.of_pixels((phantom(80_000_000 + i, 224).image for i in range(EACH)), EACH)[:, :384]
    found = {name: fidelity.figures(reference, each, seed=0) for name, each in sets.items()}
    same = {name: {key: distance(reference, each) for key, distance in fidelity.DISTANCES.items()}
            for name, each in faults(photographs[:EACH]).items()}  # fmt: skip
    with capsys.disabled():
        for name, each in found.items():
            print(f"\n{name}: " + ", ".join(f"{key} {value.value:.3f}" for key, value in each.items()))
        print(f"\nbeside the same photographs: {same}")
    for distance in fidelity.DISTANCES:
        real, compressed, *others = (each[distance] for each in found.values())
        assert compressed.low < real.high and compressed.value < others[0].low, distance
        values = [each.value for each in others]
        assert values == sorted(values), distance
        values = [each[distance] for each in same.values()]
        assert values == sorted(values), distance
    repeated = fidelity.figures(reference, np.tile(reference[:10], (40, 1)), seed=0)
    for name in ("recall", "coverage", "vendi"):
        assert repeated[name].value < 0.5 * found["real"][name].value


@pytest.mark.parametrize("planted", (0.0, 0.05, 0.2))
def test_copies_through_an_autoencoder_are_recovered(network, photographs, planted, capsys):
    """Copies turned a little, cut, lit anew and sent through the autoencoder, as a model that knows them would give."""
    training, others = photographs[:EACH], photographs[EACH:]
    sd, params = diffusers.read(SHIPPED["derm-base"])
    again = jax.jit(lambda image: reconstruction.reconstruct(sd, params["vae"], image))
    count = round(planted * EACH / 2)

    def altered(image, rng):
        turned = Image.fromarray(image).rotate(float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC)
        box = (*rng.integers(8, 24, 2), *rng.integers(200, 216, 2))
        cut = turned.crop(tuple(map(int, box)))
        lit = np.asarray(cut.resize((224, 224)), np.float32) * rng.uniform(0.85, 1.15)
        return np.asarray(again(images.to_model(np.clip(lit, 0, 255).astype(np.uint8))[None]))[0]

    def made(rows, seed):
        rng = np.random.default_rng(seed)
        return np.stack([images.from_model(altered(training[row], rng)) for row in rows])

    plain = network.of_pixels(training, EACH)
    space = features.space_of(plain)

    def look(pictures):
        return space.unit(network.of_pixels(pictures, len(pictures)))

    seen, known, held_out = space.unit(plain), look(made(range(100), 1)), look(others[: EACH // 2])
    limit = memorisation.limit(features.nearest(held_out, seen)[0], features.nearest(known, seen)[0])
    copied = made(range(100, 100 + count), 2) if count else others[:0]
    judged = np.concatenate([copied, others[EACH // 2 : EACH - count]])
    similarity, _ = features.nearest(look(judged), seen)
    share = memorisation.share_of_copies(int((similarity > limit.similarity).sum()), len(judged), limit)
    hashes = np.stack([copies.orientation_hashes(image) for image in training])
    bits = copies.nearest(np.stack([copies.orientation_hashes(image)[0] for image in copied]), hashes) if count else []
    with capsys.disabled():
        print(
            f"\nplanted {planted}: share {share}; {limit}; the hash finds {sum(bit <= 46 for bit in bits)} of {count}"
        )
    assert share.low <= planted <= share.high
