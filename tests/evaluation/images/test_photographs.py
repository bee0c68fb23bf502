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
    for name, least in (("recall", 0), ("coverage", 0), ("vendi", 1)):  # 1 is the Vendi score of one image
        assert repeated[name].value - least < 0.5 * (found["real"][name].value - least)


@pytest.fixture(scope="module")
def altered(photographs):
    """altered(rows, seed): training photographs turned a little, cut, lit anew and sent through the autoencoder, as a
    model that knows them would give them."""
    sd, params = diffusers.read(SHIPPED["derm-base"])
    again = jax.jit(lambda image: reconstruction.reconstruct(sd, params["vae"], image))

    def one(image, rng):
        turned = Image.fromarray(image).rotate(float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC)
        box = (*rng.integers(8, 24, 2), *rng.integers(200, 216, 2))
        cut = turned.crop(tuple(map(int, box)))
        lit = np.asarray(cut.resize((224, 224)), np.float32) * rng.uniform(0.85, 1.15)
        return np.asarray(again(images.to_model(np.clip(lit, 0, 255).astype(np.uint8))[None]))[0]

    def several(rows, seed):
        rng = np.random.default_rng(seed)
        return np.stack([images.from_model(one(photographs[row], rng)) for row in rows])

    return several


@pytest.fixture(scope="module")
def judge(network, photographs, altered):
    """judge(pictures): whether each is a copy of one of the first EACH photographs; and the limit that it goes by."""
    plain = network.of_pixels(photographs[:EACH], EACH)
    space = features.space_of(plain)
    seen = space.unit(plain)

    def similarity(pictures):
        return features.nearest(space.unit(network.of_pixels(pictures, len(pictures))), seen)[0]

    held_out = photographs[EACH : EACH + EACH // 2]
    limit = memorisation.limit(similarity(held_out), similarity(altered(range(100), 1)))
    return lambda pictures: similarity(pictures) > limit.similarity, limit


@pytest.mark.parametrize("planted", (0.0, 0.05, 0.2))
def test_copies_through_an_autoencoder_are_recovered(photographs, altered, judge, planted, capsys):
    is_copy, limit = judge
    count = round(planted * EACH / 2)
    copied = altered(range(100, 100 + count), 2) if count else photographs[:0]
    judged = np.concatenate([copied, photographs[EACH + EACH // 2 : 2 * EACH - count]])
    share = memorisation.share_of_copies(int(is_copy(judged).sum()), len(judged), limit)
    hashes = np.stack([copies.orientation_hashes(image) for image in photographs[:EACH]])
    bits = copies.nearest(np.stack([copies.orientation_hashes(image)[0] for image in copied]), hashes) if count else []
    with capsys.disabled():
        print(
            f"\nplanted {planted}: share {share}; {limit}; the hash finds {sum(bit <= 46 for bit in bits)} of {count}"
        )
    assert share.low <= planted <= share.high
