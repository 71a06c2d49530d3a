"""Other people's networks: do all terms sum to the output, and do they lie in the right places?

`python -m tests.experiments.networks` builds 60 networks of timm, 30 language, vision and speech models of
Transformers, graph networks, a packed LSTM and a 3-D U-Net, from small random configurations, and measures for each

- the gap of `FullGrad`, of `FullGrad` under balanced gradients and of `CompleteDeepLift`: |sum - what it should be|
  over the terms' absolute values, the worst example's; of `CompleteDeepLift` over the attributions' and the outputs';
- the share of the bias terms' absolute values that has no place;
- the distance between the complete map and the map of the same network that is fed in another layout (pixels last,
  tokens first, one row of a table each), largest difference over the largest value.

Needs timm, transformers, torch_geometric and monai. Rows are written to results/networks.json as they come, and what is
there is not measured again; `--table` prints them in Markdown.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_density.attr import CompleteDeepLift, FullGrad
from captum_density.rules import BalancedGradients
from tests._linear.architectures import randomise

RESULTS = Path(__file__).parent / "results" / "networks.json"

# Of each family of timm a small member: its name, and the side of the images where 64 pixels are too few.
TIMM = """
    bat_resnext26ts:256 botnet26t_256:256 cait_xxs24_224:224 coat_lite_tiny:224 coatnet_nano_rw_224:224 convit_tiny:224
    convmixer_768_32:64 convnext_atto convnextv2_atto cspresnet50 cs3darknet_s davit_tiny deit_tiny_patch16_224:224
    densenetblur121d dla46_c dpn48b eca_halonext26ts:256 edgenext_xx_small efficientformer_l1:224
    efficientformerv2_s0:224 tf_efficientnetv2_b0 efficientvit_b0 efficientvit_m0:224 eva02_tiny_patch14_224:224
    fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny:224 ghostnet_050 gmlp_ti16_224:224 hgnetv2_b0
    hiera_tiny_224:224 hrnet_w18_small inception_next_atto lambda_resnet26t:256 lcnet_050 levit_128s:224 mambaout_femto
    maxvit_nano_rw_256:256 mixer_s32_224:224 mobilenetv4_conv_small mobilevit_xxs mvitv2_tiny:224 nest_tiny:224
    nf_resnet26 pit_ti_224:224 poolformer_s12 pvt_v2_b0 regnetz_005 repvit_m0_9 resnest14d resnet10t resnetv2_50
    rexnet_100 sequencer2d_s:224 skresnet18 starnet_s050 swiftformer_xs:224 tiny_vit_5m_224:224 xcit_nano_12_p16_224:224
"""
# Of Transformers: the class before "ForSequenceClassification" and what its small configuration needs beside SMALL.
TEXT: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 32},
    "Bloom": {},
    "ConvBert": {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
    "DebertaV2": {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"]},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "Esm": {"position_embedding_type": "rotary", "mask_token_id": 1},
    "FNet": {},
    "Falcon": {},
    "GPT2": {},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "GPTNeoX": {},
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 8},
    "Jamba": {"num_key_value_heads": 2, "num_experts": 2, "attn_layer_period": 2,
              "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_dt_rank": 4},
    "Llama": {"num_key_value_heads": 2},
    "MPNet": {},
    "Mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "ModernBert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Phi3": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "Beit": {"use_relative_position_bias": True, "image_size": 32, "patch_size": 8},
    "ConvNextV2": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "image_size": 32},
    "Dinov2": {"image_size": 32, "patch_size": 8, "mlp_ratio": 2},
    "MobileViT": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48], "image_size": 64},
    "Segformer": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]},
    "Swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2],
             "window_size": 4},
}  # fmt: skip
AUDIO: dict[str, dict[str, Any]] = {
    "AST": {"num_mel_bins": 32, "max_length": 48},
    "Wav2Vec2": {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
                 "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16},
}  # fmt: skip
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 3,
    "pad_token_id": 0,
}
OTHERS = ("GCN", "GAT", "GIN", "packed LSTM", "MONAI U-Net, 3-D")


class Network(NamedTuple):
    """A function of inputs, a target, and the same inputs in another layout with the way back.

    Attributes:
        forward: Logits (N, C) of the inputs.
        inputs: (N, ...).
        order: A permutation of the inputs' dimensions, in which the twin is fed.
        extra: What the function takes beside the inputs, (N, ...).
    """

    forward: Callable[..., Tensor]
    inputs: Tensor
    order: tuple[int, ...]
    extra: Tensor | None = None

    def twin(self) -> "Network":
        """The same network on inputs whose dimensions are permuted."""
        back = tuple(sorted(range(len(self.order)), key=lambda i: self.order[i]))
        inputs = self.inputs.permute(self.order).contiguous()
        return Network(lambda x, *extra: self.forward(x.permute(back).contiguous(), *extra), inputs, back, self.extra)


def names() -> list[str]:
    """All rows of the table: "library: network"."""
    rows = [f"timm: {one}" for one in TIMM.split()]
    rows += [f"transformers: {one}" for one in sorted({*TEXT, *VISION, *AUDIO})]
    return rows + [f"other: {one}" for one in OTHERS]


def build(name: str) -> Network:
    """A network with seeded random weights in evaluation mode, and two examples."""
    library, _, name = name.partition(": ")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        name, _, side = name.partition(":")
        model = randomise(timm.create_model(name, num_classes=10))
        return Network(model, torch.randn(2, 3, int(side or 64), int(side or 64)), (0, 2, 3, 1))
    return _transformers(name) if library == "transformers" else _other(name)


def _transformers(name: str) -> Network:
    import transformers

    own = {**TEXT, **VISION, **AUDIO}[name]
    # Hierarchical networks name their widths by stage.
    options = {**({"num_labels": 3} if name in ("ConvNextV2", "MobileViT", "Segformer", "Swin") else SMALL), **own}
    kind = "Sequence" if name in TEXT or name == "Wav2Vec2" else "Image" if name in VISION else "Audio"
    config = getattr(transformers, f"{name}Config")(**options)
    model = randomise(getattr(transformers, f"{name}For{kind}Classification")(config))
    if name == "T5":  # whose head reads the last end-of-sequence id: its encoder, averaged
        model = randomise(transformers.T5EncoderModel(config))
        return Network(lambda x: model(inputs_embeds=x).last_hidden_state.mean(1), torch.randn(2, 9, 32), (0, 2, 1))
    if name in TEXT:
        return Network(lambda x: model(inputs_embeds=x).logits, torch.randn(2, 9, 32), (0, 2, 1))
    if name in VISION:
        side = options.get("image_size", 64)
        return Network(lambda x: model(x).logits, torch.randn(2, 3, side, side), (0, 2, 3, 1))
    if name == "AST":
        return Network(lambda x: model(x).logits, torch.randn(2, 48, 32), (0, 2, 1))
    return Network(lambda x: model(x.squeeze(1)).logits, torch.randn(2, 1, 400), (0, 2, 1))


def _other(name: str) -> Network:
    if name == "packed LSTM":
        lstm, head = randomise(nn.LSTM(6, 5, bidirectional=True, batch_first=True)), randomise(nn.Linear(10, 3))

        def final(x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return head(lstm(packed)[1][0].transpose(0, 1).flatten(1))

        return Network(final, torch.randn(2, 9, 6), (0, 2, 1), torch.tensor([9, 6]))
    if name.startswith("MONAI"):
        from monai.networks.nets import UNet

        unet = randomise(UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1))
        return Network(lambda x: unet(x)[..., 3:9, 3:9, 3:9].mean((2, 3, 4)), torch.randn(2, 1, 16, 16, 16),
                       (0, 2, 3, 4, 1))  # fmt: skip
    import torch_geometric.nn as graph

    edges = torch.tensor([[0, 1, 1, 2, 3, 4, 4, 5, 6, 0], [1, 0, 2, 1, 4, 3, 5, 4, 0, 6]])
    layers: list[nn.Module] = {
        "GCN": lambda: [graph.GCNConv(4, 8), graph.GCNConv(8, 3)],
        "GAT": lambda: [graph.GATConv(4, 4, heads=2), graph.GATConv(8, 3)],
        "GIN": lambda: [graph.GINConv(nn.Linear(4, 8)), graph.GINConv(nn.Linear(8, 3))],
    }[name]()
    first, second = (randomise(layer) for layer in layers)
    # One graph of 7 nodes: its node features (1, 7, 4) are one example, node 2's logits are explained.
    return Network(lambda x: second(first(x[0], edges).relu(), edges)[None, 2], torch.randn(1, 7, 4), (0, 2, 1))


def measure(network: Network) -> dict[str, float]:
    """One row: gaps and the share without a place per method, the twin's distance, seconds."""
    forward, inputs, extra = network.forward, network.inputs, network.extra
    target = [1] * len(inputs)
    start = time.perf_counter()
    terms = FullGrad(forward).decompose(inputs, target, extra)
    row = {"gap": float(terms.gap().max()), "unplaced": float(terms.unplaced_share().max())}
    row["gap, balanced"] = float(FullGrad(BalancedGradients(forward)).decompose(inputs, target, extra).gap().max())
    lifted, delta = CompleteDeepLift(forward).attribute(
        inputs, target=target, additional_forward_args=extra, return_convergence_delta=True
    )
    # The outputs' own size, since a difference below their rounding cannot be met.
    size = lifted.flatten(1).abs().sum(1) + terms.output.abs() + (terms.output - lifted.flatten(1).sum(1)).abs()
    row["gap, DeepLift"] = float((delta.abs() / size).max())
    twin = network.twin()
    there = FullGrad(forward, complete=True).attribute(inputs, target, extra)
    back = FullGrad(twin.forward, complete=True).attribute(twin.inputs, target, extra).permute(twin.order)
    row["twin"] = float((there - back).abs().max() / there.abs().max())
    return row | {"seconds": time.perf_counter() - start}


def main() -> None:
    """Measure what is not in the results yet, or print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help='rows such as "timm: resnet10t", to be measured anew; else all missing'
    )
    parser.add_argument("--table", action="store_true", help="print the results in Markdown")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if given.table:
        print(*table(results), sep="\n")
        return
    for name in given.names or [name for name in names() if name not in results]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                results[name] = measure(build(name))
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as refusal:
                results[name] = {"refused": f"{type(refusal).__name__}: {refusal}".splitlines()[0]}
        print(name, results[name], flush=True)
        RESULTS.write_text(json.dumps({one: results[one] for one in names() if one in results}, indent=1) + "\n")


def table(results: dict[str, Any]) -> Iterator[str]:
    """The lines of the published table."""
    columns = ("gap", "gap, balanced", "gap, DeepLift", "twin")
    yield "| network | " + " | ".join(columns) + " | without a place |"
    yield "|---" * (len(columns) + 2) + "|"
    for name, row in results.items():
        if "refused" in row:
            yield f"| {name} | {row['refused']} |" + " |" * len(columns)
        else:
            gaps = " | ".join(f"{row[column]:.0e}" for column in columns)
            yield f"| {name.partition(':')[2].partition(':')[0].strip()} | {gaps} | {row['unplaced']:.0%} |"


if __name__ == "__main__":
    main()
