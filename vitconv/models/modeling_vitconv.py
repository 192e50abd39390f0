"""A vision model of Transformers with a timm model's pooling, and its classifier if it has one.

vitconv writes this file into a converted folder where Transformers has the vision model, but no class that pools as
timm does: https://huggingface.co/docs/transformers/custom_models

- ``AutoModel.from_pretrained(folder)`` loads the vision model alone, and does not run this file.
- ``AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)`` loads the classifier.
- Without a classifier, ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` loads the vision model with
  timm's features as ``pooler_output``.

``timm_head`` in ``config.json`` says what follows the vision model:

- ``pooling``: what the head reads of the vision model's output: ``"pooler_output"``, ``"summary"``, ``"class_token"``,
  ``"mean"`` or ``"attention"`` of the tokens from the number ``first_patch`` on, ``"mean_2d"`` of a map of features;
- ``num_features``: the width of that;
- ``norm_eps``: the epsilon of the LayerNorm behind the pooling; ``null`` if there is none. With ``"attention"`` it is
  that of the LayerNorm before it and of the one within;
- ``intermediate_size``: of the MLP within, with ``"attention"``.
"""

import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput


class _Mlp(nn.Module):
    def __init__(self, width, hidden_width, hidden_act):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.act = ACT2FN[hidden_act]
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class _AttentionPool(nn.Module):
    """timm's ``AttentionPoolLatent``: a learned query attends to the tokens, and an MLP follows."""

    def __init__(self, config):
        super().__init__()
        head = config.timm_head
        width = head["num_features"]
        self.num_heads = config.num_attention_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=head["norm_eps"])
        self.mlp = _Mlp(width, head["intermediate_size"], config.hidden_act)

    def forward(self, tokens):
        images, _, width = tokens.shape
        query = self._heads(self.q(self.latent.expand(images, -1, -1)))
        keys, values = map(self._heads, self.kv(tokens).chunk(2, dim=-1))
        found = nn.functional.scaled_dot_product_attention(query, keys, values)
        found = self.proj(found.transpose(1, 2).reshape(images, 1, width))
        return (found + self.mlp(self.norm(found)))[:, 0]

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class _WithTimmPooling:
    """The vision model and the pooling, perhaps with a norm."""

    kind = "WithTimmPoolingModel"
    auto_class = "AutoModel"

    def __init__(self, config):
        super().__init__(config)
        head = config.timm_head
        setattr(self, self.base_model_prefix, self.vision_model_class(config))
        if head["norm_eps"] is not None:
            self.head_norm = nn.LayerNorm(head["num_features"], eps=head["norm_eps"])
        if head["pooling"] == "attention":
            self.head_pool = _AttentionPool(config)
        self.add_classifier(config)
        self.post_init()

    def add_classifier(self, config):
        pass

    def pool(self, outputs):
        head = self.config.timm_head
        if head["pooling"] in ("pooler_output", "summary"):
            return outputs[head["pooling"]]
        tokens = outputs.last_hidden_state
        if head["pooling"] == "class_token":
            return tokens[:, 0]
        if head["pooling"] == "mean_2d":
            return tokens.mean((2, 3))
        if head["pooling"] == "attention":
            return self.head_pool(self.head_norm(tokens)[:, head["first_patch"] :])
        return tokens[:, head["first_patch"] :].mean(1)

    def run(self, pixel_values, output_attentions, output_hidden_states):
        """What the vision model returns, and timm's features."""
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {name: value for name, value in asked.items() if value is not None}
        outputs = self.base_model(pixel_values=pixel_values, **asked)
        features = self.pool(outputs)
        if self.config.timm_head["norm_eps"] is not None and self.config.timm_head["pooling"] != "attention":
            features = self.head_norm(features)
        return outputs, features

    def forward(self, pixel_values=None, output_attentions=None, output_hidden_states=None):
        outputs, features = self.run(pixel_values, output_attentions, output_hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state, pooler_output=features, **_inner(outputs)
        )


class _WithTimmHead(_WithTimmPooling):
    """The same, and a linear layer."""

    kind = "WithTimmHeadForImageClassification"
    auto_class = "AutoModelForImageClassification"

    def add_classifier(self, config):
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.timm_head["num_features"], config.num_labels)

    def forward(self, pixel_values=None, labels=None, output_attentions=None, output_hidden_states=None, **kwargs):
        outputs, features = self.run(pixel_values, output_attentions, output_hidden_states)
        logits = self.classifier(features)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits, **_inner(outputs))


def _inner(outputs):
    """What was asked for beside the result."""
    return {name: getattr(outputs, name, None) for name in ("hidden_states", "attentions")}


def _with_vision_model(mixin, vision_model):
    """The class with this vision model; what the model's family can, such as attention backends, it can, too."""
    attributes = {
        "__module__": __name__,
        "vision_model_class": vision_model,
        "config_class": vision_model.config_class,
        "base_model_prefix": vision_model.base_model_prefix,
    }
    return type(vision_model.__name__.removesuffix("Model") + mixin.kind, (mixin, vision_model.__mro__[1]), attributes)


for _name in (
    "Aimv2VisionModel",
    "CLIPVisionModel",
    "DINOv3ViTModel",
    "DPTModel",
    "InternVLVisionModel",
    "RadioModel",
    "Sam3ViTModel",
    "SamVisionModel",
    "Sapiens2Model",
    "SiglipVisionModel",
):
    if hasattr(transformers, _name):  # an earlier Transformers lacks some
        for _mixin in (_WithTimmHead, _WithTimmPooling):
            _class = _with_vision_model(_mixin, getattr(transformers, _name))
            _class.register_for_auto_class(_mixin.auto_class)  # so that it is saved with this file
            globals()[_class.__name__] = _class
