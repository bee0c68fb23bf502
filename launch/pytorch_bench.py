"""PyTorch's side of `dermjax bench`: the work of each kind of case as diffusers' and transformers' users have it.

    python launch/pytorch_bench.py KIND SETTINGS fresh|kept

is its process (`dermjax.bench.process.serve`), started by `dermjax bench` and by nobody else. It lies beside the
package, which never imports PyTorch, and goes into the wheel as a file that is run. A setting `compiled` puts
torch.compile around the network. On a GPU all is in channels last and in bfloat16, what is trained by autocast.
"""

import json
import math
import os
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from dermjax.bench.cases import BATCH, CONTEXT
from dermjax.bench.process import Work, peak_memory, serve

DEVICE = "cuda" if torch.cuda.is_available() and "cpu" not in os.environ.get("JAX_PLATFORMS", "") else "cpu"
ON_CPU = DEVICE == "cpu"
DTYPE = torch.float32 if ON_CPU else torch.bfloat16
LAYOUT = torch.contiguous_format if ON_CPU else torch.channels_last
RATE, CLIP, DECAY = 1e-4, 1.0, 0.98


def peak():
    return peak_memory() if ON_CPU else torch.cuda.max_memory_allocated()


def wait():
    if not ON_CPU:
        torch.cuda.synchronize()


def sd15(kind, name):
    """A network of Stable Diffusion 1.5 with random weights."""
    import diffusers

    from dermjax.models.stable_diffusion import SD15

    with torch.device(DEVICE):
        return getattr(diffusers, kind).from_config(SD15[name])


def ready(network, compiled):
    """The network for evaluations alone, compiled or not."""
    network = network.eval().requires_grad_(False).to(DEVICE, DTYPE, memory_format=LAYOUT)
    return torch.compile(network) if compiled else network


def derm_tiny():
    from dermjax.weights import model_files

    return model_files.locate("derm-tiny")


def matrix(side):
    a, b = (torch.randn(side, side, device=DEVICE, dtype=DTYPE) for _ in range(2))
    return Work(lambda: (torch.mm(a, b), wait()), 2.0 * side**3, peak)


@torch.no_grad()
def unet(batch, side, evaluations, compiled):
    network = ready(sd15("UNet2DConditionModel", "unet"), compiled)
    x = torch.randn(batch, 4, side, side, device=DEVICE, dtype=DTYPE).to(memory_format=LAYOUT)
    context, t = torch.randn(batch, *CONTEXT, device=DEVICE, dtype=DTYPE), torch.tensor(500, device=DEVICE)

    @torch.no_grad()
    def run():
        latents = x
        for _ in range(evaluations):
            latents = latents + 0.1 * network(latents, t, context).sample
        wait()

    return Work(run, peak=peak)


def decode(pixels, compiled):
    vae = ready(sd15("AutoencoderKL", "vae"), False)
    decoder = torch.compile(vae.decode) if compiled else vae.decode
    latents = torch.randn(1, 4, pixels // 8, pixels // 8, device=DEVICE, dtype=DTYPE).to(memory_format=LAYOUT)

    @torch.no_grad()
    def run():
        decoder(latents / vae.config.scaling_factor).sample.clamp(-1, 1)
        wait()

    return Work(run, peak=peak)


def sample(steps, batch, guidance, compiled):
    """diffusers' pipeline by Euler's method."""
    import diffusers
    import transformers

    folder = derm_tiny()
    networks = {
        "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        "vae": diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
    }
    networks = {
        name: network.eval().to(DEVICE, DTYPE, memory_format=LAYOUT if name != "text_encoder" else None)
        for name, network in networks.items()
    }
    if compiled:
        networks["unet"] = torch.compile(networks["unet"])
    pipeline = diffusers.StableDiffusionPipeline(
        **networks, tokenizer=None, scheduler=diffusers.EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    config = networks["text_encoder"].config
    said = torch.randint(config.vocab_size, (batch, config.max_position_embeddings), device=DEVICE)

    def run():
        with torch.no_grad():
            context = networks["text_encoder"](said)[0]
        pipeline(prompt_embeds=context, negative_prompt_embeds=context, num_inference_steps=steps,
                 guidance_scale=guidance, output_type="np")  # fmt: skip

    return Work(run, peak=peak)


def prediction(network, scheduler, scale, moments, context):
    """The loss of DreamBooth's script in diffusers, of cached moments."""
    mean, log_variance = moments.chunk(2, 1)
    latents = (mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)) * scale
    noise, t = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),), device=DEVICE)
    predicts_noise = scheduler.config.prediction_type == "epsilon"
    target = noise if predicts_noise else scheduler.get_velocity(latents, noise, t)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=not ON_CPU):
        predicted = network(scheduler.add_noise(latents, noise, t), t, context).sample
    return torch.nn.functional.mse_loss(predicted.float(), target)


def tune(batch, steps, compiled):
    """Steps of AdamW on derm-tiny's UNet with clipped gradients and an average of its parameters."""
    import diffusers

    folder = derm_tiny()
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    unet = unet.train().to(DEVICE, memory_format=LAYOUT)
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")
    scale = diffusers.AutoencoderKL.from_pretrained(folder / "vae").config.scaling_factor
    network, config = torch.compile(unet) if compiled else unet, unet.config
    weights = list(unet.parameters())
    average = [weight.detach().clone() for weight in weights]
    rule = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01, fused=not ON_CPU or None)
    moments = torch.randn(batch, 8, config.sample_size, config.sample_size, device=DEVICE)
    tokens = json.loads((folder / "text_encoder" / "config.json").read_text())["max_position_embeddings"]
    context = torch.randn(batch, tokens, config.cross_attention_dim, device=DEVICE)

    def run():
        for _ in range(steps):
            loss = prediction(network, scheduler, scale, moments, context)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            rule.step()
            rule.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(average, weights, 1 - DECAY)
        wait()

    return Work(run, peak=peak)


def gradient(how, batch, side, compiled):
    """The loss of Stable Diffusion 1.5 and its gradient, of the whole UNet or of peft's LoRA on its attention."""
    import diffusers
    import peft

    from dermjax.models.stable_diffusion import SD15

    unet = sd15("UNet2DConditionModel", "unet").train()
    if how == "lora":
        unet.requires_grad_(False).to(DTYPE)
        unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        diffusers.training_utils.cast_training_params(unet)
    unet = unet.to(DEVICE, memory_format=LAYOUT)
    network = torch.compile(unet) if compiled else unet
    scheduler = diffusers.DDPMScheduler.from_config(SD15["scheduler"])
    moments = torch.randn(batch, 8, side, side, device=DEVICE)
    context = torch.randn(batch, *CONTEXT, device=DEVICE)

    def run():
        unet.zero_grad(set_to_none=True)
        prediction(network, scheduler, SD15["vae"]["scaling_factor"], moments, context).backward()
        wait()

    return Work(run, peak=peak)


def classify(name, size, batch, steps, compiled):
    """Steps of AdamW on transformers' model, in channels last where that is faster: MobileNetV2's convolutions."""
    import transformers

    if name == "vit":
        config = transformers.ViTConfig(
            hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=size, num_labels=2
        )
        model, layout = transformers.ViTForImageClassification(config), LAYOUT
    else:
        config = transformers.MobileNetV2Config(image_size=size, num_labels=2, classifier_dropout_prob=0.0)
        model, layout = transformers.MobileNetV2ForImageClassification(config), torch.channels_last
    model = model.train().to(DEVICE, memory_format=layout)
    network = torch.compile(model) if compiled else model
    rule = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, fused=not ON_CPU or None)
    image = torch.rand((batch, 3, size, size)).to(DEVICE, memory_format=layout)
    label = torch.arange(batch, device=DEVICE) % 2

    def run():
        for _ in range(steps):
            rule.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=not ON_CPU):
                loss = network(image, labels=label).loss
            loss.backward()
            rule.step()
        wait()

    return Work(run, peak=peak)


class Photographs(torch.utils.data.Dataset):
    """JPEGs under what torchvision's transforms of our augmentations do to Pillow's images, without end.

    RandomResizedCrop, RandomRotation, RandomHorizontalFlip, ColorJitter, ToTensor and Normalize.
    """

    def __init__(self, folder, augment):
        self.paths, self.strong = sorted(Path(folder).glob("*.jpg")), augment == "strong"
        self.mean = torch.full((3, 1, 1), 0.5)

    def __len__(self):
        return 2**31

    def __getitem__(self, index):
        with open(self.paths[index % len(self.paths)], "rb") as file:
            image = Image.open(file).convert("RGB")
        if self.strong:
            image = self.resized_crop(image).rotate(random.uniform(-180, 180), Image.Resampling.BILINEAR)
        else:
            image = image.transpose(random.choice([Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180]))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = self.jitter(image, *((0.2, 8 / 360) if self.strong else (0.1, 0)))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return pixels.sub_(self.mean).div_(self.mean), index % 2

    @staticmethod
    def resized_crop(image):
        wide, high = image.size
        area, aspect = wide * high * random.uniform(0.5, 1), math.exp(random.uniform(math.log(0.8), math.log(1.25)))
        w, h = min(wide, round(math.sqrt(area * aspect))), min(high, round(math.sqrt(area / aspect)))
        x, y = random.randint(0, wide - w), random.randint(0, high - h)
        return image.crop((x, y, x + w, y + h)).resize((224, 224), Image.Resampling.BILINEAR)

    @staticmethod
    def hue(image, by):
        h, s, v = image.convert("HSV").split()
        turned = np.array(h, dtype=np.uint8) + np.int32(by * 255).astype(np.uint8)
        return Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB")

    def jitter(self, image, share, turn):
        def by(kind):
            return lambda i: kind(i).enhance(random.uniform(1 - share, 1 + share))

        changes = [by(ImageEnhance.Brightness), by(ImageEnhance.Contrast)]
        if turn:
            changes += [by(ImageEnhance.Color), lambda i: self.hue(i, random.uniform(-turn, turn))]
        random.shuffle(changes)
        for change in changes:
            image = change(image)
        return image


def batches(augment, images, folder):
    """Batches of PyTorch's DataLoader with a worker process a core."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    loader = torch.utils.data.DataLoader(Photographs(folder, augment), batch_size=BATCH, num_workers=workers)
    made = iter(loader)
    return Work(lambda: [next(made) for _ in range(images // BATCH)])


def load(dtype, folder):
    """diffusers' pipeline from a folder."""
    from diffusers import StableDiffusionPipeline

    options = {"torch_dtype": getattr(torch, dtype), "safety_checker": None}
    return Work(lambda: StableDiffusionPipeline.from_pretrained(folder, **options))


KINDS = (matrix, unet, decode, sample, tune, gradient, classify, batches, load)

if __name__ == "__main__":
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    serve(*KINDS)
