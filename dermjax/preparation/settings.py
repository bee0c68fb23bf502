"""Settings of `prepare` that cannot be meant, refused in one line before anything is read."""

from ml_collections import ConfigDict

from dermjax.errors import UserError

SIDES = 16  # pixels, of which images are looked at in cells


def refuse(config: ConfigDict) -> None:
    """UserError for the first setting that cannot be meant."""
    if not config.images:
        raise UserError("config.images is empty; give a folder with class/*.jpg, or phantoms")
    if config.on_bad_image not in ("fail", "skip"):
        raise UserError(f"config.on_bad_image {config.on_bad_image!r}: give fail or skip")
    if config.images == "phantoms" and (config.size < SIDES or config.size % SIDES):
        raise UserError(f"config.size {config.size}: give the side of phantoms in pixels, a multiple of {SIDES}")
    if config.limit < 0:
        raise UserError(f"config.limit {config.limit}: give the most images a class and split, or 0 for all")
    if config.folds and not (config.folds > 1 and 0 <= config.fold < config.folds):
        raise UserError(f"config.fold {config.fold} of {config.folds}: give 2 folds or more, and a fold from 0 on")
    shares = (config.ratios.validation, config.ratios.test)
    if not (min(shares) >= 0 and sum(shares) < 1):  # NaN is neither
        raise UserError(
            f"config.ratios {shares}: give shares of 0 or more for validation and test that leave some to train"
        )
