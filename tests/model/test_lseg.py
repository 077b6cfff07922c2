from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import BackboneConfig, ModelConfig, RegularizerConfig
from model.errors import ModelError
from model.loss import segmentation_loss
from model.lseg import LSeg, build_lseg
from model.metrics import ConfusionMatrix
from model.prediction import NO_LABEL, as_batches
from model.sliding import AS_IT_IS, sliding_label_ids
from model.text import build_text_encoder


def images(*sizes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_normalisation_is_that_of_the_backbone(tiny_lseg):
    (image,) = images((8, 8))
    found = tiny_lseg.normalize(torch.from_numpy(image)[None])
    expected = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    torch.testing.assert_close(found, expected)


def test_it_shows_itself_in_a_line(tiny_lseg):
    text = repr(tiny_lseg)
    assert "\n" not in text
    assert text.startswith(f"LSeg({tiny_lseg.config.backbone.name}, text stand-in, ")
    assert text.endswith(" M parameters, 0 trained labels)")


def test_scores_are_the_product_of_pixel_and_label_vectors(tiny_config):
    lseg = build_lseg(replace(tiny_config, regularizer=RegularizerConfig()), 512).eval()
    image, text = torch.randn(2, 3, 50, 70), 3 * torch.randn(4, 512)
    pixels = lseg.embed(image)
    assert pixels.shape == (2, 512, 25, 35)
    expected = torch.einsum("kc,bchw->bkhw", text / text.norm(dim=1, keepdim=True), pixels) / 0.07
    torch.testing.assert_close(lseg(image, text), expected, rtol=1e-4, atol=1e-4)


def test_padding_is_cut_off_again_without_touching_what_fits(tiny_lseg):
    image = torch.randn(1, 3, 64, 96)
    text = torch.randn(3, 512)
    whole = tiny_lseg(image, text)
    assert whole.shape == (1, 3, 32, 48)
    assert tiny_lseg(image[:, :, :33, :41], text).shape == (1, 3, 17, 21)
    padded = torch.nn.functional.pad(image[:, :, :33, :41], (0, 23, 0, 31), mode="replicate")
    torch.testing.assert_close(
        tiny_lseg(image[:, :, :33, :41], text), tiny_lseg(padded, text)[:, :, :17, :21]
    )


def test_pairs_of_each_image_equal_a_loop_over_images(tiny_lseg):
    image, text = torch.randn(3, 3, 64, 64), torch.randn(3, 2, 512)
    together = tiny_lseg(image, text)
    alone = [tiny_lseg(image[i : i + 1], text[i]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("init", "factor"), [("identity", 1), ("reference", 10)])
def test_every_parameter_is_in_one_group_at_its_rate(tiny_config, init, factor):
    regularizer = RegularizerConfig(kind="depthwise", depth=2, init=init)
    lseg = build_lseg(replace(tiny_config, regularizer=regularizer), 512)
    groups = {group["name"]: group for group in lseg.parameter_groups(0.5)}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "backbone": 0.5,
        "decoder": 5.0,
        "regularizer": 0.5 * factor,
    }
    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in lseg.parameters())
    reassemble = {id(parameter) for parameter in lseg.reassemble.parameters()}
    assert reassemble <= {id(parameter) for parameter in groups["backbone"]["params"]}


def test_bfloat16_autocast_keeps_lengths_scores_and_loss_in_float32(tiny_lseg):
    image, text = torch.randn(1, 3, 64, 64), torch.randn(4, 512)
    label = torch.randint(0, 4, (1, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        pixels = tiny_lseg.embed(image)
        logits = tiny_lseg(image, text)
        loss, _ = segmentation_loss(logits, label)
    assert pixels.dtype == logits.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(pixels.norm(dim=1), torch.ones(1, 32, 32), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, tiny_lseg(image, text), rtol=0, atol=0.5)


def test_weights_in_float64_give_scores_and_gradients_in_float64(tiny_lseg):
    (image,) = images((48, 64))
    image, text = torch.from_numpy(image)[None], torch.randn(4, 512)
    label = torch.randint(0, 4, (1, 48, 64))
    narrow, narrow_pixels = (
        tiny_lseg(tiny_lseg.normalize(image), text),
        tiny_lseg.embed(tiny_lseg.normalize(image)),
    )
    lseg = tiny_lseg.double()
    wide, pixels = lseg(lseg.normalize(image), text), lseg.embed(lseg.normalize(image))
    loss, _ = segmentation_loss(wide, label)
    loss.backward()
    assert wide.dtype == pixels.dtype == loss.dtype == torch.float64
    torch.testing.assert_close(wide.float(), narrow, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pixels.float(), narrow_pixels, rtol=1e-4, atol=1e-4)
    # Rounded to float32 at the end, the lengths would be off by 1e-8.
    torch.testing.assert_close(pixels.norm(dim=1) - 1, 0 * pixels[:, 0], rtol=0, atol=1e-14)
    gradients = [p.grad for p in lseg.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.dtype == torch.float64 for gradient in gradients)


@pytest.mark.slow
def test_compiled_step_is_one_graph_and_equals_the_eager_one(tiny_lseg):
    image, text = torch.randn(1, 3, 64, 64), torch.randn(4, 512)
    label = torch.randint(0, 4, (1, 64, 64))
    results = []
    for step in (tiny_lseg, torch.compile(tiny_lseg, backend="aot_eager", fullgraph=True)):
        tiny_lseg.zero_grad()
        loss, _ = segmentation_loss(step(image, text), label)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in tiny_lseg.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)


def test_predict_takes_any_images_and_keeps_their_sizes(tiny_lseg):
    tiny_lseg.train()
    arrays = images((40, 30), (64, 64))
    labels = ["wall", "red car", "sky"]
    found = tiny_lseg.predict(arrays, labels)
    assert [ids.shape for ids in found] == [(40, 30), (64, 64)]
    assert found[0].dtype == np.int64
    assert tiny_lseg.training
    (same,) = tiny_lseg.predict(Image.fromarray(arrays[0]), labels)
    np.testing.assert_array_equal(same, found[0])
    (same,) = tiny_lseg.predict(torch.from_numpy(arrays[0])[None], labels)
    np.testing.assert_array_equal(same, found[0])
    tiny_lseg.eval()
    with torch.no_grad():
        logits = tiny_lseg(
            tiny_lseg.normalize(torch.from_numpy(arrays[0])[None]), tiny_lseg.embed_text(labels)
        )
        upsampled = torch.nn.functional.interpolate(
            logits, (40, 30), mode="bilinear", align_corners=True
        )
    np.testing.assert_array_equal(upsampled.argmax(1)[0].numpy(), found[0])


def test_the_three_ways_with_pixels_of_no_label(tiny_lseg):
    (image,) = images((64, 64))
    plain = tiny_lseg.predict(image, ["wall", "sky"])[0]
    named = tiny_lseg.predict(image, ["wall", "sky"], other="other")[0]
    explicit = tiny_lseg.predict(image, ["wall", "sky", "other"])[0]
    np.testing.assert_array_equal(named, np.where(explicit == 2, NO_LABEL, explicit))
    doubtful = tiny_lseg.predict(image, ["wall", "sky"], other=0.9)[0]
    assert plain.min() >= 0
    assert set(np.unique(doubtful)) <= {-1, 0, 1}
    assert (doubtful == plain)[doubtful != NO_LABEL].all()


def test_threshold_is_a_probability_at_full_resolution(tiny_lseg):
    torch.manual_seed(0)
    image, text = torch.randn(1, 3, 11, 9), torch.randn(3, tiny_lseg.embed_dim)
    with torch.inference_mode():
        upsampled = torch.nn.functional.interpolate(
            tiny_lseg(image, text), (11, 9), mode="bilinear", align_corners=True
        )
    probability, best = upsampled.softmax(1).max(1)
    threshold = float(probability.quantile(0.505))  # Between two of the 99 values.
    found = sliding_label_ids(tiny_lseg, image, text, AS_IT_IS, threshold=threshold)
    assert 0 < int((found == NO_LABEL).sum()) < found.numel()
    torch.testing.assert_close(found, best.where(probability >= threshold, NO_LABEL))


def test_arrays_of_any_memory_layout_are_taken(tiny_lseg):
    (image,) = images((64, 40))
    expected = tiny_lseg.predict(image, ["wall", "sky"])[0]
    bgr = np.ascontiguousarray(image[..., ::-1])
    np.testing.assert_array_equal(tiny_lseg.predict(bgr[..., ::-1], ["wall", "sky"])[0], expected)
    image.setflags(write=False)
    np.testing.assert_array_equal(tiny_lseg.predict(image, ["wall", "sky"])[0], expected)
    turned = torch.from_numpy(bgr[..., ::-1].copy()).permute(1, 0, 2).contiguous().permute(1, 0, 2)
    assert not turned.is_contiguous()
    np.testing.assert_array_equal(tiny_lseg.predict(turned, ["wall", "sky"])[0], expected)


def test_many_images_go_through_in_parts_and_in_order(tiny_lseg, monkeypatch):
    arrays = images((64, 64), (64, 64), (64, 64), (40, 30), (64, 64))
    expected = [tiny_lseg.predict(array, ["wall", "sky"])[0] for array in arrays]
    monkeypatch.setattr("model.prediction.MAX_BATCH_MPX", 2 * 64 * 64 / 1e6)
    assert [len(batch) for batch in as_batches(arrays)] == [2, 1, 1, 1]
    for found, alone in zip(tiny_lseg.predict(arrays, ["wall", "sky"]), expected, strict=True):
        np.testing.assert_array_equal(found, alone)


def test_text_asked_in_inference_mode_can_be_trained_against_later(tiny_lseg):
    with torch.inference_mode():
        tiny_lseg.predict(images((64, 64)), ["wall", "sky"])
    logits = tiny_lseg(torch.randn(1, 3, 64, 64), tiny_lseg.embed_text(["wall", "sky"]))
    logits.sum().backward()
    assert tiny_lseg.decoder.head.weight.grad is not None


def test_one_label_and_more_than_a_byte_holds(tiny_lseg):
    (image,) = images((32, 32))
    assert not tiny_lseg.predict(image, ["wall"])[0].any()
    many = [f"word{index}" for index in range(300)]
    best = int(tiny_lseg.predict(image, many)[0][0, 0])
    many.append(many.pop(best))
    assert tiny_lseg.predict(image, many)[0][0, 0] == 299
    logits = tiny_lseg(torch.randn(1, 3, 32, 32), tiny_lseg.embed_text(many))
    label = torch.full((1, 32, 32), 299)
    loss, count = segmentation_loss(logits, label, ignore=-1)
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear", align_corners=True),
        label,
        reduction="sum",
    )
    assert int(count) == 32 * 32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_vectors_of_length_zero_give_finite_scores_and_gradients(tiny_config):
    lseg = build_lseg(tiny_config, 512)
    torch.nn.init.zeros_(lseg.decoder.head.weight)
    torch.nn.init.zeros_(lseg.decoder.head.bias)
    text = torch.zeros(2, 512)
    logits = lseg(torch.randn(1, 3, 64, 64), text)
    logits.square().sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in lseg.parameters() if p.grad is not None)


def test_pixel_features_can_be_kept_smaller(tiny_lseg):
    with torch.inference_mode():
        (full,) = tiny_lseg.pixel_features(images((40, 30)))
        (some,) = tiny_lseg.pixel_features(images((40, 30)), stride=4, dtype=torch.float16)
    assert some.dtype == torch.float16
    assert some.shape[1:] == (5, 4)
    torch.testing.assert_close(some, full[:, ::4, ::4].half())
    assert some.untyped_storage().nbytes() == some.numel() * 2  # Nothing of the rest is kept.
    wrong = (("stride", 0), ("stride", 1.5), ("dtype", torch.int8), ("dtype", torch.bool))
    for name, value in wrong:
        with pytest.raises(ModelError, match=f"{name}={value}: must be"):
            tiny_lseg.pixel_features(images((40, 30)), **{name: value})


def test_pixel_features_carry_gradients(tiny_lseg):
    first, second = tiny_lseg.pixel_features(images((64, 64), (40, 30)))
    assert (first.shape, second.shape) == ((512, 32, 32), (512, 20, 15))
    second.sum().backward()
    assert tiny_lseg.decoder.head.weight.grad is not None
    with torch.no_grad():
        assert not tiny_lseg.pixel_features(images((64, 64)))[0].requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((8, 8), np.uint8), "labels": ["a"]}, "must be RGB"),
        ({"images": np.zeros((8, 8, 3), np.float32), "labels": ["a"]}, "must be RGB"),
        ({"images": [], "labels": ["a"]}, "at least one image"),
        ({"images": np.zeros((8, 8, 3), np.uint8)}, "pass a list"),
        ({"images": np.zeros((8, 8, 3), np.uint8), "labels": "dog"}, r"write \['dog'\]"),
        ({"images": [np.zeros((1, 8, 8, 3), np.uint8)], "labels": ["a"]}, "among several"),
        ({"images": np.zeros((8, 8, 3), np.uint8), "labels": ["a"], "other": 1.5}, "probability"),
    ],
)
def test_wrong_use_is_answered_clearly(tiny_lseg, arguments, message):
    with pytest.raises(ModelError, match=message):
        tiny_lseg.predict(**arguments)


@pytest.mark.slow
@pytest.mark.samples
def test_one_real_image_can_be_learnt_by_heart(shared_data):
    samples = shared_data("samples/cityscapes_small")
    picture = sorted(samples.rglob("*leftImg8bit*.png"))[0]
    annotation = sorted(samples.rglob("*labelIds*.png"))[0]
    image = np.array(Image.open(picture).convert("RGB").resize((192, 96)))
    native = np.array(Image.open(annotation).resize((192, 96), Image.Resampling.NEAREST))
    present = [int(value) for value in np.unique(native) if value > 3]
    label = np.full(native.shape, 255, np.uint8)
    for index, value in enumerate(present):
        label[native == value] = index
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(
            name="vit_tiny_patch16_224",
            pretrained=False,
            kwargs={"patch_size": 8, "depth": 4, "img_size": 96},
        ),
        features=64,
    )
    encoder = build_text_encoder(replace(config.text, encoder="stand-in"))
    text = encoder.encode([f"thing number {value}" for value in present])
    lseg = build_lseg(config, encoder.dim).train()
    optimizer = torch.optim.AdamW(lseg.parameters(), lr=1e-3)
    batch, target = torch.from_numpy(image)[None], torch.from_numpy(label)[None]
    for _ in range(150):
        loss, count = segmentation_loss(lseg(lseg.normalize(batch), text), target)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    matrix = ConfusionMatrix(len(present))
    ids = sliding_label_ids(lseg, lseg.normalize(batch), text, AS_IT_IS)
    matrix.update(ids, target)
    assert matrix.pixel_accuracy() > 0.95


def test_the_text_encoder_is_built_once(tiny_lseg: LSeg):
    encoder = tiny_lseg.text_encoder
    assert tiny_lseg.text_encoder is encoder
    # What it encoded for the network it need not encode again.
    assert torch.equal(tiny_lseg.embed_text(["wall"]), encoder.encode(["wall"]))
    assert tiny_lseg.embed_text(["wall"]) is encoder.encode(["wall"])


def test_text_encoder_is_no_part_of_the_weights(tiny_lseg: LSeg):
    before = set(tiny_lseg.state_dict())
    tiny_lseg.embed_text(["wall"])
    assert set(tiny_lseg.state_dict()) == before
