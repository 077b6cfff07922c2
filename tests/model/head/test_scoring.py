import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model.head.scoring import cosine_scores
from model.upsampling import source_rows, upsample, upsample_rows

SIDE = st.integers(1, 8)


@given(source=st.tuples(SIDE, SIDE), scale=st.sampled_from([1, 2, 3.5]), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_scores_and_gradients_equal_those_of_explicit_pixel_vectors(source, scale, seed):
    torch.manual_seed(seed)
    size = (round(source[0] * scale), round(source[1] * scale))
    trunk = torch.randn(2, 5, *source, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    text = torch.randn(3, 7, dtype=torch.float64)
    pixels = upsample(functional.conv2d(trunk, weight[:, :, None, None], bias), size)
    expected = torch.einsum("kc,bchw->bkhw", text, functional.normalize(pixels, dim=1))
    found = cosine_scores(trunk, weight, bias, text, size)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    probe = torch.randn_like(found)
    inputs = (trunk, weight, bias)
    grads = torch.autograd.grad((found * probe).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * probe).sum(), inputs)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-5, atol=1e-5)


def test_labels_of_each_image_are_scored_in_one_call():
    torch.manual_seed(0)
    trunk, weight, bias = torch.randn(3, 5, 4, 6), torch.randn(7, 5), torch.randn(7)
    text = torch.randn(3, 2, 7)
    together = cosine_scores(trunk, weight, bias, text, (8, 12))
    for image in range(3):
        alone = cosine_scores(trunk[image : image + 1], weight, bias, text[image], (8, 12))
        torch.testing.assert_close(together[image : image + 1], alone)


@given(source=SIDE, target=st.integers(1, 30), start=st.integers(0, 29), rows=st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_rows_of_an_upsampled_map_need_only_their_source_rows(source, target, start, rows):
    start = min(start, target - 1)
    stop = min(start + rows, target)
    torch.manual_seed(0)
    whole = torch.randn(1, 2, source, 5, dtype=torch.float64)
    span = source_rows(start, stop, source, target)
    found = upsample_rows(whole[:, :, span], span.start, (start, stop), source, (target, 9))
    torch.testing.assert_close(found, upsample(whole, (target, 9))[:, :, start:stop])
