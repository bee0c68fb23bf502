"""The moments that a base model is trained on are kept while the autoencoder and the images are the same."""

import numpy as np

from dermjax.training import disk_cache


def test_moments_of_another_autoencoder_are_encoded_again(tmp_path, capsys):
    causes = {"numeric_versions": {"vae": 1}, "arithmetic": "float32", "vae": disk_cache.digest_of([np.zeros(3)])}
    (tmp_path / "moments.npy").write_bytes(b"of the first versions, by its name alone")
    made = [disk_cache.load_or_compute(tmp_path, "moments", causes, lambda: np.ones(3)) for _ in range(2)]
    assert capsys.readouterr().out.count("moments in") == 1 and not (tmp_path / "moments.npy").exists()
    other = causes | {"vae": disk_cache.digest_of([np.ones(3)])}
    made.append(disk_cache.load_or_compute(tmp_path, "moments", other, lambda: np.full(3, 2.0)))
    assert "are computed again (vae: " in capsys.readouterr().out
    assert [array[0] for array in made] == [1, 1, 2]
