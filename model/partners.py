"""Which text tower belongs to which image tower: two of equal length may be of two spaces.

By timm's name with its tag: the models of open_clip that hold the other half of the same training,
and the tag of their weights. Vectors of CLIP's and of LAION's towers both have 512 numbers, and
their cosines mean nothing.
"""

from model.backbone import AlignedVit, has_own_weights, named_in_full
from model.config import ONE_HOT, STAND_IN, TABLE, ModelConfig
from model.errors import ModelError
from model.packages import PACKAGE
from model.text.open_clip_tower import WEIGHT_SUFFIXES

PARTNERS: dict[str, tuple[tuple[str, ...], str]] = {
    "vit_base_patch32_clip_quickgelu_224.openai": (("ViT-B-32-quickgelu", "ViT-B-32"), "openai"),
    "vit_base_patch16_clip_quickgelu_224.openai": (("ViT-B-16-quickgelu", "ViT-B-16"), "openai"),
    "vit_large_patch14_clip_quickgelu_224.openai": (("ViT-L-14-quickgelu", "ViT-L-14"), "openai"),
    "vit_large_patch14_clip_quickgelu_336.openai": (
        ("ViT-L-14-336-quickgelu", "ViT-L-14-336"),
        "openai",
    ),
    "vit_base_patch16_clip_224.laion2b": (("ViT-B-16",), "laion2b_s34b_b88k"),
    "vit_base_patch16_clip_224.datacompxl": (("ViT-B-16",), "datacomp_xl_s13b_b90k"),
    "vit_base_patch16_clip_224.dfn2b": (("ViT-B-16",), "dfn2b"),
    "vit_huge_patch14_clip_quickgelu_378.dfn5b": (("ViT-H-14-378-quickgelu",), "dfn5b"),
    "eva02_base_patch16_clip_224.merged2b": (("EVA02-B-16",), "merged2b_s8b_b131k"),
    "eva02_large_patch14_clip_336.merged2b": (("EVA02-L-14-336",), "merged2b_s6b_b61k"),
    "vit_base_patch16_siglip_512.v2_webli": (("ViT-B-16-SigLIP2-512",), "webli"),
    "vit_large_patch16_siglip_512.v2_webli": (("ViT-L-16-SigLIP2-512",), "webli"),
    "vit_so400m_patch16_siglip_512.v2_webli": (("ViT-SO400M-16-SigLIP2-512",), "webli"),
    "vit_pe_core_base_patch16_224.fb": (("PE-Core-B-16",), "meta"),
    "vit_pe_core_large_patch14_336.fb": (("PE-Core-L-14-336",), "meta"),
}
"""OpenAI's weights make open_clip compute QuickGELU under either of its names."""


def require_partner(config: ModelConfig) -> None:
    """Refuses published weights of two trainings where the table knows the right pair.

    Weights from a file, and text encoders that are no tower of CLIP's kind, are taken as they are
    given: what a language is worth is measured with the wrong ones.

    Raises:
        ModelError: names the text tower to choose.
    """
    backbone, text = config.backbone, config.text
    from_file = has_own_weights(backbone) or text.pretrained.endswith(WEIGHT_SUFFIXES)
    no_tower = text.encoder in (STAND_IN, ONE_HOT) or text.encoder.startswith((TABLE, PACKAGE))
    if not backbone.pretrained or from_file or no_tower:
        return
    name = named_in_full(backbone.name)
    if "_clip_" in name and "_ft_in" in name:
        raise ModelError(
            f"model.backbone.name={backbone.name}: means {name}, which was trained further on "
            "ImageNet's numbers, away from any text: name a tag of CLIP's own training, such as "
            f"{backbone.name.split('.')[0]}.openai"
        )
    names, tag = PARTNERS.get(name, ((), ""))
    if not names:
        return
    if text.encoder not in names or text.pretrained != tag:
        raise ModelError(
            f"model.text.encoder={text.encoder} ({text.pretrained}): is not the text tower that "
            f"model.backbone.name={name} was trained with: set model.text.encoder to "
            f"{names[0]} and model.text.pretrained to {tag}"
        )


def require_same_length(config: ModelConfig, backbone: AlignedVit, embed_dim: int) -> None:
    """Refuses features that cannot be compared with the text's vectors.

    Args:
        config: of both towers.
        backbone: the image tower.
        embed_dim: numbers of a text vector.

    Raises:
        ModelError: their lengths differ; says how an untrained backbone gets the right one.
    """
    if backbone.embed_dim == embed_dim:
        return
    untrained = (
        ""
        if config.backbone.pretrained
        else "; or give an untrained one a projection of that length, with "
        f"num_classes: {embed_dim} in model.backbone.kwargs"
    )
    raise ModelError(
        f"model.backbone.name={config.backbone.name}: gives vectors of {backbone.embed_dim} "
        f"numbers, and model.text.encoder={config.text.encoder} of {embed_dim}: choose the text "
        f"encoder that it was trained with{untrained}"
    )
