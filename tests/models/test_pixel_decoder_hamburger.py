"""The factorization against multiplicative updates written out, and its bases: the same always and everywhere."""

import copy

import pytest
import torch
import torch.nn.functional as F

from offseg_hf.models.layers import fuse
from offseg_hf.models.pixel_decoder_hamburger import (
    FusedSqueeze,
    HamburgerPixelDecoder,
    NonNegativeMatrixFactorization,
)
from tests.comparison import assert_same_outputs
from tests.processes import run_python


CHANNELS, NUM_BASES = 32, 6


def factorization(seed: int = 0, train_steps: int = 6, eval_steps: int = 7) -> NonNegativeMatrixFactorization:
    return NonNegativeMatrixFactorization(CHANNELS, NUM_BASES, train_steps, eval_steps, seed).eval()


def maps(batch: int = 2, height: int = 9, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, CHANNELS, height, width), generator=generator).relu_()


def official_bases(seed: int = 0) -> torch.Tensor:
    """(channels, num_bases), as the goldens fix them."""
    bases = torch.rand((1, CHANNELS, NUM_BASES), generator=torch.Generator().manual_seed(seed))
    return F.normalize(bases, dim=1)[0]


def updated_in_a_loop(x: torch.Tensor, bases: torch.Tensor, steps: int) -> torch.Tensor:
    """One image (channels, height, width) in float64; Lee and Seung's rules, in the order of the official code."""
    data, bases = x.double().flatten(1).T, bases.double()  # (pixels, channels)
    codes = (data @ bases).softmax(dim=1)
    for step in range(steps + 1):
        codes = codes * (data @ bases) / (codes @ bases.T @ bases + 1e-6)
        if step < steps:
            bases = bases * (data.T @ codes) / (bases @ codes.T @ codes + 1e-6)
    return (codes @ bases.T).T.reshape(x.shape)


@torch.no_grad()
@pytest.mark.parametrize("training, steps", [(True, 2), (False, 5)])
def test_equals_the_loop(training, steps):
    module, x = factorization(train_steps=2, eval_steps=5).train(training), maps()
    expected = torch.stack([updated_in_a_loop(one, official_bases(), steps) for one in x])
    torch.testing.assert_close(module.double()(x.double()), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(module.float()(x), expected.float(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_steps_approximate():
    """Every step brings the product closer to the map, whose rank is that of the bases."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand((CHANNELS, NUM_BASES), generator=generator), torch.rand((NUM_BASES, 100), generator=generator)
    x = (factors[0] @ factors[1]).reshape(1, CHANNELS, 10, 10)
    errors = [(factorization(eval_steps=steps)(x) - x).norm().item() for steps in (0, 5, 50, 500)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * x.norm()


@torch.no_grad()
def test_batch_is_its_images():
    x = maps(3)
    separate = torch.cat([factorization()(one) for one in x.split(1)])
    assert_same_outputs(factorization()(x), separate)


@torch.no_grad()
def test_nothing_to_factorize():
    """A map of zeros has no bases: zeros come back, not NaN."""
    assert torch.equal(factorization()(torch.zeros(1, CHANNELS, 4, 4)), torch.zeros(1, CHANNELS, 4, 4))


def test_bases_are_a_function_of_the_seed():
    torch.manual_seed(123)  # the global generator is neither read nor moved
    before = torch.get_rng_state()
    assert torch.equal(factorization().bases[0], official_bases())
    assert torch.equal(factorization(seed=5).bases[0], official_bases(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(factorization(seed=5).bases, factorization().bases)


def test_bases_of_another_process():
    script = "from tests.models.test_pixel_decoder_hamburger import *; print(factorization().bases.double().tolist())"
    assert run_python(script).stdout.strip() == str(factorization().bases.double().tolist())


def test_bases_survive():
    """Whatever is done to a model, its bases are the same float32 numbers, and never in a file."""
    expected = official_bases()
    with torch.device("meta"):
        on_meta = factorization()
    assert on_meta.bases.is_meta
    variants = {
        "cast and back": factorization().half().float(),
        "half": factorization().to(torch.float16),
        "bfloat16": factorization().bfloat16(),
        "double": factorization().double(),
        "copied": copy.deepcopy(factorization()),
        "from meta": on_meta.to_empty(device="cpu"),
        "moved": factorization().to("cpu", torch.bfloat16),
    }
    for name, module in variants.items():
        assert module.bases.dtype == torch.float32, name
        assert torch.equal(module.bases[0], expected), name
        assert not module.state_dict(), name
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(factorization().bases[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Sums over thousands of large values, which overflow float16, are taken in float32."""
    x = (300 * maps(1, 64, 64)).to(dtype)
    assert x.float().sum(dim=(2, 3)).max() > torch.finfo(torch.float16).max
    expected = factorization()(x.float())
    assert_same_outputs(factorization().to(dtype)(x), expected.to(dtype), roundings=2)
    with torch.autocast("cpu", dtype=dtype):
        assert_same_outputs(factorization()(x.float()), expected)


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True], ids=["as-made", "fused"])
def test_decoder_equals_its_layers(fused):
    """Upsample, concatenate, squeeze, in the official order; the fused decoder squeezes first."""
    torch.manual_seed(0)
    decoder = HamburgerPixelDecoder([8, 16, 24], 32, num_bases=4, train_steps=6, eval_steps=7, seed=0).eval()
    feature_maps = [torch.randn(2, c, h, w) for c, h, w in ((4, 18, 22), (8, 9, 11), (16, 5, 6), (24, 3, 3))]
    upsampled = [F.interpolate(x, size=(9, 11), mode="bilinear", align_corners=False) for x in feature_maps[1:]]
    x = decoder.squeeze.norm(decoder.squeeze.conv(torch.cat(upsampled, dim=1))).relu()
    hamburger = decoder.hamburger
    low_rank = hamburger.factorization(hamburger.in_proj(x).relu())
    x = decoder.output_conv((x + hamburger.out_proj(low_rank)).relu()).relu()
    if fused:
        decoder = fuse(decoder.requires_grad_(False))
        assert isinstance(decoder.squeeze, FusedSqueeze)
    assert_same_outputs(decoder(feature_maps), x)
