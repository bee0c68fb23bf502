"""Random pipelines of PyTorch diffusers, small and of the kind of Stable Diffusion 1.5, and their saved folders."""

import pytest

from dermjax.data.tokens import load_tokenizer, write_word_tokenizer


@pytest.fixture(scope="session")
def random_pipeline():
    """Returns a function from a folder, the UNet's input channels and its prediction to a pipeline saved there."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")

    def made(folder, channels, prediction):
        write_word_tokenizer(folder / "words", ["a", "benign", "malignant", "mole"], 8)
        words = load_tokenizer(folder / "words")
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=channels,
            out_channels=4,
            block_out_channels=(32, 32),
            cross_attention_dim=32,
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        settings = transformers.CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
        scheduler = diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction,
            skip_prk_steps=True,
            steps_offset=1,
        )
        text = transformers.CLIPTextModel(settings)
        for network in (vae, text, unet):
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)
        pipeline = diffusers.StableDiffusionPipeline(
            vae,
            text,
            words,
            unet,
            scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder / "model")
        return pipeline

    return made
