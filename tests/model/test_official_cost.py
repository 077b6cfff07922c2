"""Published checkpoints of CAT-Seg, filled by rule: what of them becomes which weight."""

import json

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn

from jobs.import_official import ImportConfig
from jobs.import_official import run as run_import
from model.checkpoint_files import TEXT_WEIGHTS
from model.errors import ModelError
from model.head.aggregator import Aggregator
from model.lseg import LSeg
from model.official import import_official
from model.official_cost import CLIP, HEAD
from tests.golden.fill_rule import fill

BLOCK = "visual.transformer.resblocks.0.attn"
WIDTH, DEPTH, GRID, EMBED = 128, 3, 4, 512


def block(width: int) -> dict[str, tuple[int, ...]]:
    """A block of either tower, with queries, keys and values apart."""
    return {
        **{f"attn.{each}_proj_weight": (width, width) for each in "qkv"},
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        **{f"ln_{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")},
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Keys of a published file, of a small CLIP with a text tower of one block."""
    clip = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (1 + GRID**2, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, 8, 8),
        "visual.proj": (WIDTH, EMBED),
        **{
            f"visual.ln_{n}.{leaf}": (WIDTH,)
            for n in ("pre", "post")
            for leaf in ("weight", "bias")
        },
        **{
            f"visual.transformer.resblocks.{n}.{name}": shape
            for n in range(DEPTH)
            for name, shape in block(WIDTH).items()
        },
        **{f"transformer.resblocks.0.{name}": shape for name, shape in block(64).items()},
        "text_projection": (64, EMBED),
        "logit_scale": (),
    }
    with torch.device("meta"):
        head = {name: tuple(t.shape) for name, t in Aggregator(EMBED).state_dict().items()}
    return {
        **{f"{CLIP}{name}": shape for name, shape in clip.items()},
        **{f"{HEAD}{name}": shape for name, shape in head.items()},
        "upsample1.weight": (WIDTH, 256, 2, 2),
        "upsample1.bias": (256,),
        "upsample2.weight": (WIDTH, 128, 4, 4),
        "upsample2.bias": (128,),
    }


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(fill(name, shape)) for name, shape in shapes().items()}


def written(path, state):
    torch.save({"model": state, "iteration": 79999}, path)
    return path


def joined(state, prefix):
    """OpenAI's own form of a tower, with the three weights in one."""
    found = {k.removeprefix(CLIP): v for k, v in state.items() if k.startswith(CLIP + prefix)}
    for key in [key for key in found if key.endswith("q_proj_weight")]:
        stem = key.removesuffix("q_proj_weight")
        found[f"{stem}in_proj_weight"] = torch.cat(
            [found.pop(f"{stem}{each}_proj_weight") for each in "qkv"]
        )
    return found


def test_every_weight_arrives_and_the_trained_text_tower_is_kept(published, tmp_path):
    path = written(tmp_path / "model_final.pth", published)
    run_import(ImportConfig(checkpoint=str(path), out=str(tmp_path / "out")))
    lseg = LSeg.load(tmp_path / "out")
    text = lseg.config.text
    assert (lseg.config.head.kind, lseg.config.head.padded, text.pretrained) == (
        "cost",
        256,
        str(tmp_path / "out" / TEXT_WEIGHTS),
    )
    assert (text.encoder, text.templates) == ("ViT-B-16-quickgelu", "A photo of a {} in the scene")
    state = lseg.state_dict()
    for name, value in published.items():
        if name.startswith((HEAD, "upsample")):
            assert torch.equal(state[f"cost.{name.replace(HEAD, 'aggregator.')}"], value), name
    # timm reads OpenAI's image towers by a table of its own.
    vit = lseg.backbone.vit
    expected = checkpoint_filter_fn(joined(published, "visual."), vit)
    ours = {name: value for name, value in vit.state_dict().items() if name != "head.bias"}
    assert ours.keys() == expected.keys() - {"head.bias"}
    assert [n for n, v in ours.items() if not torch.equal(v, expected[n])] == []
    assert not vit.head.bias.any()
    kept = load_file(tmp_path / "out" / TEXT_WEIGHTS)
    tower = {k: v for k, v in joined(published, "").items() if not k.startswith("visual.")}
    assert kept.keys() == tower.keys()
    assert all(torch.equal(kept[name], value) for name, value in tower.items())
    with torch.no_grad():
        assert lseg(torch.randn(1, 3, 32, 32), torch.randn(3, EMBED)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample1.bias": None}, "upsample1.bias missing instead of"),
        ({f"{HEAD}conv1.weight": (128, 2, 7, 7)}, "conv1.weight .128, 2, 7, 7. instead of"),
        ({f"{HEAD}more": (1,)}, "more: unexpected"),
        ({f"{CLIP}text_projection": None}, "text_projection: missing, with the text tower"),
        ({f"{CLIP}visual.conv1.weight": None}, "holds no CLIP ViT beside"),
        ({f"{CLIP}visual.proj": (WIDTH, 20)}, "is none that CAT-Seg publishes"),
        ({f"{CLIP}visual.positional_embedding": (0, WIDTH)}, "holds no CLIP ViT beside"),
        ({f"{CLIP}{BLOCK}.q_proj_weight": ()}, "attn.in_proj_weight missing instead of"),
        ({f"{CLIP}{BLOCK}.k_proj_weight": (2, 2)}, "attn.in_proj_weight missing instead of"),
        ({f"{CLIP}visual.transformer.resblocks.99.ln_1.bias": (1,)}, "100 blocks .* is none that"),
    ],
)
def test_what_does_not_fit_is_listed(published, tmp_path, change, message):
    state = {name: value for name, value in published.items() if change.get(name, ()) is not None}
    state |= {name: torch.zeros(shape) for name, shape in change.items() if shape is not None}
    with pytest.raises(ModelError, match=message):
        import_official(written(tmp_path / "model.pth", state))


def test_the_file_is_a_plain_mapping(published, tmp_path):
    """Without detectron2's `model` around it, as some converters leave it."""
    path = tmp_path / "plain.pth"
    torch.save(published, path)
    found = import_official(path)
    assert found.text_trained
    assert json.dumps(found.notes).count("CAT-Seg") == 1
