"""Settings that cannot be meant are refused in one line."""

import pytest


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"images": ""}, "config.images is empty"),
        ({"on_bad_image": "ignore"}, "config.on_bad_image 'ignore'"),
        ({"limit": -1}, "config.limit -1"),
        ({"ratios.test": 0.95}, "config.ratios"),
        ({"ratios.validation": -0.1}, "config.ratios"),
        ({"images": "phantoms", "phantoms_per_class": 3}, "3 phantoms a class: too few for validation"),
        ({"images": "phantoms", "limit": 3}, "3 phantoms a class: too few for validation"),
        ({"fold": 2}, "config.fold 2: of how many"),
        ({"images": "phantoms", "positive": "benign"}, "config.positive: is for photographs"),
        ({"images": "phantoms", "columns.age": "years"}, "config.columns.age: is for photographs"),
        ({"images": "phantoms", "folds": 5}, "config.folds: phantoms have none"),
        ({"previous": "runs/earlier", "folds": 5}, "config.previous: every fold would test what it has for the test"),
        ({"images": "phantoms", "phantoms_per_class": 500_001}, "phantoms_per_class 500001"),
        ({"images": "phantoms", "size": 100}, "size 100"),
        ({"images": "phantoms", "size": 32}, "config.size 32: .* a multiple of 16 from 64 to 512"),
    ],
)
def test_settings_that_cannot_be_meant(folder, changes, told, refused):
    refused(changes.get("images", folder), told, **{k: v for k, v in changes.items() if k != "images"})


def test_an_unknown_variant_is_refused(settings):
    with pytest.raises(ValueError, match="no variant 'paper'"):
        settings("paper")
