"""Settings of every test: `--slow`, JAX raising where arrays of different rank would be broadcast; the command."""

import datetime
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# in the environment rather than jax.config, so that tests without JAX do not import it and subprocesses inherit it
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests as well")


def pytest_configure(config):
    """Without --slow, XLA compiles without LLVM's optimisations: two fifths of the time of tests of small networks."""
    if not config.getoption("--slow"):
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@pytest.fixture(autouse=True)
def freed_memory_goes_back(monkeypatch):
    """What trains within this process does not change how it takes memory for the tests after it."""
    monkeypatch.setattr("dermjax.machine.keep_freed_memory", lambda: None)


@pytest.fixture
def killed_at_its_first_checkpoint(monkeypatch):
    """Calls a function that trains, and ends it as a kill would, right after its first checkpoint is written."""
    from dermjax.training import loop  # here, since many tests need no JAX

    class Killed(Exception):
        pass

    def dies(*given, save=loop.checkpoints.save, **more):
        save(*given, **more)
        raise Killed

    def call(train, *given):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(loop.checkpoints, "save", dies)
            train(*given)

    return call


@pytest.fixture
def command(monkeypatch, capsys):
    """A function that runs `dermjax ARGUMENTS ...` within this process: (exit code, standard output, error output)."""
    from absl import flags

    from dermjax import __main__

    # so that the command sets no others for the tests after this one
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", ""))

    def run(*arguments):
        before = set(flags.FLAGS)
        monkeypatch.setattr(sys, "argv", ["dermjax", *map(str, arguments)])
        try:
            code = __main__.main()
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
        return code, *capsys.readouterr()

    return run


PERMUTED = """
import jax, numpy
from jax.sharding import Mesh
def permuted(order):
    def make_mesh(shape, names, *, axis_types, devices):
        chosen = [devices[place] for place in order if place < len(devices)]
        return Mesh(numpy.array(chosen).reshape(shape), names, axis_types=axis_types)
    jax.make_mesh = make_mesh
"""


@pytest.fixture(scope="session")
def permuted():
    """permuted(order): Python that orders the devices of every mesh by hand, as topology does on a TPU."""
    return lambda order: f"{PERMUTED}permuted({order})\n"


@pytest.fixture(scope="session")
def joined():
    """joined(code, *arguments, devices): runs Python as two processes of some CPU devices each; returns what each said.

    In the code, which `jax.distributed` has joined, `sys.argv[1:]` are the arguments.
    """

    def run(code, *arguments, devices):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            address = f"localhost:{listener.getsockname()[1]}"
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        both = [
            subprocess.Popen(
                [sys.executable, "-c", f"import sys, jax; jax.distributed.initialize('{address}', 2, {index})\n{code}",
                 *map(str, arguments)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for index in range(2)
        ]  # fmt: skip
        told = [process.communicate(timeout=240) for process in both]
        for process, (_, error) in zip(both, told, strict=True):
            assert process.returncode == 0, error
        return [said for said, _ in told]

    return run


@pytest.fixture(scope="module")
def no_transfers():
    """Steps of the training loop raise where they would copy between host and device by themselves."""
    import jax

    from dermjax.training import loop

    compile_step = loop.compile_step

    def guarded(*given):
        step = compile_step(*given)

        def call(*arrays):
            with jax.transfer_guard("disallow"):
                return step(*arrays)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_step", guarded)
        yield


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A random Stable Diffusion 1.x of few channels with CLIP's vocabulary: (sd, params, its folder)."""
    import copy

    import numpy as np

    from dermjax.models.stable_diffusion import SD15, StableDiffusion
    from dermjax.weights import diffusers

    configs = copy.deepcopy(SD15)
    configs["text_encoder"] |= {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    configs["text_encoder"] |= {"num_hidden_layers": 1}
    configs["unet"] |= {"attention_head_dim": 2, "block_out_channels": [8, 8], "cross_attention_dim": 16}
    configs["unet"] |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "norm_num_groups": 4}
    configs["unet"] |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "sample_size": 4}
    configs["vae"] |= {"block_out_channels": [4] * 4, "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 32}
    sd = StableDiffusion(configs, Path(diffusers.__file__).parent / "clip_tokenizer", np.float32)
    params = sd.init(0)
    folder = tmp_path_factory.mktemp("small") / "model"
    diffusers.write(folder, sd, params, dtype=np.float32)
    return sd, params, folder


@pytest.fixture(scope="session")
def randomise():
    """A function that draws every parameter of a PyTorch network anew.

    PyTorch starts many at 0 or 1, which would hide exchanged tensors. The numbers do not depend on the tests before.
    """
    torch = pytest.importorskip("torch")

    @torch.no_grad()
    def draw(network):
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:  # norms stay near 1 and biases near 0, so that thirty layers neither vanish nor explode
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(float(parameter.mean() > 0.5) + 0.2 * noise)
        return network.eval()

    return draw


@pytest.fixture(scope="session")
def random_pipeline(randomise):
    """A function from configs, as those of `StableDiffusion`, to diffusers' pipeline with random weights."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    from dermjax.data.tokens import load_tokenizer
    from dermjax.weights import diffusers as ours

    def build(configs):
        torch.manual_seed(0)
        options = {
            name: {key: value for key, value in config.items() if not key.startswith("_")}
            for name, config in configs.items()
        }
        words = load_tokenizer(Path(ours.__file__).parent / "clip_tokenizer")
        text = options["text_encoder"] | {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
        text.pop("model_type")
        kind = getattr(diffusers, configs["scheduler"]["_class_name"])
        known = {key: value for key, value in options["scheduler"].items() if key in kind().config}
        pipeline = getattr(
            diffusers, "StableDiffusion" + "Inpaint" * (configs["unet"]["in_channels"] == 9) + "Pipeline"
        )
        return pipeline(
            vae=randomise(diffusers.AutoencoderKL(**options["vae"])),
            text_encoder=randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(**text))),
            unet=randomise(diffusers.UNet2DConditionModel(**options["unet"])),
            tokenizer=words,
            scheduler=kind(**known),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return build


@pytest.fixture(scope="session")
def signer(tmp_path_factory):
    """The PEM files of a self-made certificate with its issuer, and of its private key: (certificate, key)."""
    pytest.importorskip("c2pa")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("issuer", "signer")}

    def certificate(name, number, authority, *more):
        whole = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "nobody")]
        names = {each: x509.Name([*whole, x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in keys}
        public = keys[name].public_key()
        built = x509.CertificateBuilder(
            subject_name=names[name], issuer_name=names["issuer"], public_key=public, serial_number=number,
            not_valid_before=now - datetime.timedelta(days=1), not_valid_after=now + datetime.timedelta(days=1),
        )  # fmt: skip
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        usage |= {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
        built = built.add_extension(x509.BasicConstraints(authority, None), True)
        built = built.add_extension(x509.KeyUsage(**usage), True)
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        for extension in more:
            built = built.add_extension(extension, False)
        return built.sign(keys["issuer"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    of_issuer = certificate("issuer", 1, True)
    of_signer = certificate(
        "signer", 2, False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["issuer"].public_key()),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("signer")
    (folder / "certificate.pem").write_bytes(of_signer + of_issuer)
    (folder / "key.pem").write_bytes(
        keys["signer"].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(folder / "certificate.pem"), str(folder / "key.pem")
