"""Layer methods over embeddings of ids: in models of transformers, in Captum's classes for LLMs, on balanced views."""

import pytest
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients, LLMGradientAttribution, TextTokenInput
from torch import nn
from torch.testing import assert_close

from captum_density.attr import FullGrad, LayerFullGrad, LayerPathIntegratedGradients
from captum_density.rules import BalancedGradients
from tests.attr.layered import network

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SMALL = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
LLAMA = transformers.LlamaConfig(num_key_value_heads=2, pad_token_id=0, **SMALL)


def seeded(kind, config):
    torch.manual_seed(0)
    return kind(config).eval()


@pytest.fixture(scope="module")
def llama():
    return seeded(transformers.LlamaForCausalLM, LLAMA)


@pytest.fixture(scope="module")
def tokenizer():
    letters = {letter: i for i, letter in enumerate("_abcdefghijklmnopqrstuvwxyz")}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="_"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="_", pad_token="_")


def log_probabilities(model, prompt, target):
    ids = torch.tensor([prompt + target])
    rows = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(target)[:, None])[:, 0].detach()


class TestCaptumsLLMGradientAttribution:
    def test_layer_full_grad(self, llama, tokenizer):
        layer = llama.model.embed_tokens
        attribution = LLMGradientAttribution(LayerFullGrad(llama, layer, complete=True), tokenizer)
        result = attribution.attribute(TextTokenInput("a b c d", tokenizer), target="x y")
        assert result.token_attr.shape == (2, 4)
        expected = log_probabilities(llama, tokenizer.encode("a b c d"), tokenizer.encode("x y"))
        # Captum cuts off what tokens that were generated before carry.
        assert_close(result.token_attr[0].sum(), expected[0])
        saliency = LLMGradientAttribution(LayerFullGrad(llama, layer), tokenizer)
        assert bool((saliency.attribute(TextTokenInput("a b c d", tokenizer), target="x").token_attr >= 0).all())

    def test_a_path(self, llama, tokenizer):
        own, captums = (
            LLMGradientAttribution(make(llama, llama.model.embed_tokens), tokenizer)
            for make in (LayerPathIntegratedGradients, LayerIntegratedGradients)
        )
        prompt = TextTokenInput("a b c d", tokenizer, baselines="_", skip_tokens=[3])
        results = [a.attribute(prompt, target="x y", n_steps=4) for a in (own, captums)]
        assert results[0].token_attr.shape == (2, 3)
        assert_close(results[0].token_attr, results[1].token_attr, rtol=1e-4, atol=1e-6)

    def test_the_attribution_that_is_wrapped_stays_what_it_is(self, llama, tokenizer):
        attribution = LayerFullGrad(llama, llama.model.embed_tokens, complete=True)
        LLMGradientAttribution(attribution, tokenizer).attribute(TextTokenInput("a b", tokenizer), target="x")
        assert attribution.forward_func is llama


ENCODERS = {
    "bert": lambda: seeded(transformers.BertForSequenceClassification, transformers.BertConfig(num_labels=3, **SMALL)),
    "distilbert": lambda: seeded(
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig(vocab_size=30, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3),
    ),
    "gpt2": lambda: seeded(
        transformers.GPT2ForSequenceClassification,
        transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0),
    ),
    "llama": lambda: seeded(transformers.LlamaForSequenceClassification, LLAMA),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_ids_are_explained_as_their_embeddings_are(name):
    model = ENCODERS[name]()
    ids, mask = torch.randint(1, 30, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0

    def logits(ids, mask):
        return model(ids, attention_mask=mask).logits

    def of_embeddings(vectors, mask):
        return model(inputs_embeds=vectors, attention_mask=mask).logits

    layer = model.get_input_embeddings()
    terms = LayerFullGrad(logits, layer).decompose(ids, 1, mask)
    assert float(terms.gap().max()) < 1e-5
    assert_close(terms.output, logits(ids, mask)[:, 1])
    if name in ("bert", "distilbert"):  # decoders look for the last token in the ids
        assert float(terms.parts()["around"].abs().max()) == 0
        for complete in (False, True):
            own = LayerFullGrad(logits, layer, complete=complete).attribute(ids, 1, mask)
            expected = FullGrad(of_embeddings, complete=complete).attribute(layer(ids).detach(), 1, mask)
            assert_close(own, expected, rtol=1e-4, atol=1e-7)


def test_a_layer_that_returns_a_record():
    model = ENCODERS["bert"]()
    ids = torch.randint(1, 30, (2, 7))
    attributions = LayerFullGrad(lambda ids: model(ids).logits, model.bert, complete=True).attribute(ids, 1)
    assert [a.shape for a in attributions] == [(2, 7, 16), (2, 16)]  # the hidden states, and the pooled one
    assert float(attributions[0].abs().max()) == 0
    assert_close(attributions[1].sum(1), model(ids).logits[:, 1])


class TestBalancedGradients:
    def test_captums_layer_methods_see_the_rules(self):
        net = network("encoder")
        view, layer = BalancedGradients(net.model), net.layer("tokens")
        vectors = layer(net.inputs).detach()

        def rest(vectors):
            return net.model.head(net.model.encoder(vectors + net.model.positions.weight[: vectors.shape[1]])[:, 0])

        balanced = BalancedGradients(rest)
        leaf = vectors.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(balanced(leaf)[:, 1].sum(), leaf)
        assert_close(LayerGradientXActivation(view, layer).attribute(net.inputs, 1), gradient * vectors)
        plain = LayerGradientXActivation(net.model, layer).attribute(net.inputs, 1)
        assert float((plain - gradient * vectors).abs().max().detach()) > 1e-3
        # With one step in the middle the path is a gradient there.
        (half,) = torch.autograd.grad(balanced(leaf / 2)[:, 1].sum(), leaf)
        options = {"baselines": None, "target": 1, "n_steps": 1}
        zero = torch.zeros_like(layer.weight[0])
        with torch.no_grad():
            layer.weight[0] = zero
        for make in (LayerIntegratedGradients, LayerPathIntegratedGradients):
            assert_close(make(view, layer).attribute(net.inputs, **options), 2 * half * vectors, rtol=1e-5, atol=1e-7)

    def test_terms_under_rules_sum_to_the_output(self):
        net = network("encoder")
        view = BalancedGradients(net.model)
        for layer in ("tokens", "encoder.layers.0", "encoder.layers.1.linear1"):
            terms = LayerFullGrad(view, net.layer(layer)).decompose(net.inputs, 1)
            assert float(terms.gap().max()) < 1e-12
            own = LayerGradientXActivation(view, net.layer(layer)).attribute(net.inputs, 1)
            assert_close(terms.layer[0], own)

    def test_a_hook_that_replaces_nothing_changes_nothing(self):
        net = network("residual")
        view = BalancedGradients(net.model)
        x = net.inputs.clone().requires_grad_()
        (expected,) = torch.autograd.grad(view(x)[:, 1].sum(), x)
        for handle in (
            net.layer("first").register_forward_hook(lambda *_: None),
            net.layer("second").register_forward_pre_hook(lambda *_: None),
        ):
            (gradient,) = torch.autograd.grad(view(x)[:, 1].sum(), x)
            assert_close(gradient, expected, rtol=0, atol=0)
            assert len(net.layer("first")._forward_hooks) <= 1
            handle.remove()

    def test_pre_hooks_that_replace_what_a_layer_takes(self):
        net = network("residual")
        view = BalancedGradients(nn.Sequential(net.model.first, nn.GELU(), net.model.second, nn.Flatten()))
        layer = view.model[1]
        own = LayerGradientXActivation(view, layer).attribute(net.inputs, 1, attribute_to_layer_input=True)
        options = {"target": 1, "n_steps": 1, "attribute_to_layer_input": True, "baselines": net.inputs}
        path = LayerIntegratedGradients(view, layer, multiply_by_inputs=False).attribute(net.inputs, **options)
        z = net.model.first(net.inputs).detach()
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(BalancedGradients(view.model[1:])(leaf)[:, 1].sum(), leaf)
        assert_close(own, gradient * z)
        assert_close(path, gradient)


def test_what_to_pick_of_a_decoders_output_is_said(llama):
    with pytest.raises(TypeError, match=r"model\(x\)\['logits'\]\[:, -1\]"):
        LayerFullGrad(llama, llama.model.embed_tokens).attribute(torch.tensor([[1, 2, 3]]), target=1)


@pytest.mark.parametrize("layer", ["model.embed_tokens", ["model.embed_tokens"]])
def test_a_layers_name_is_refused_with_how_to_find_it(llama, layer):
    with pytest.raises(TypeError, match=r"pass model.get_submodule\('model.embed_tokens'\)"):
        LayerFullGrad(llama, layer)
