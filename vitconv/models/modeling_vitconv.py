"""Image classifiers made of a vision model of Transformers and the head of a timm model.

vitconv writes this file into a converted folder where Transformers has the vision model, but no classifier that pools
as timm does: https://huggingface.co/docs/transformers/custom_models

- ``AutoModel.from_pretrained(folder)`` loads the vision model alone, and does not run this file.
- ``AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)`` loads the classifier.

``timm_head`` in ``config.json`` says what lies between the vision model and the classifier:

- ``pooling``: what the head reads of the vision model's output: ``"pooler_output"``, ``"summary"``, ``"class_token"``,
  ``"mean"`` of the tokens from the number ``first_patch`` on, or ``"mean_2d"`` of a map of features;
- ``num_features``: the width of that;
- ``norm_eps``: the epsilon of the LayerNorm behind the pooling; ``null`` if there is none.
"""

import transformers
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput


class _WithTimmHead:
    """The head: pooling, perhaps a norm, and a linear layer."""

    def __init__(self, config):
        super().__init__(config)
        head = config.timm_head
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.vision_model_class(config))
        if head["norm_eps"] is not None:
            self.head_norm = nn.LayerNorm(head["num_features"], eps=head["norm_eps"])
        self.classifier = nn.Linear(head["num_features"], config.num_labels)
        self.post_init()

    def pool(self, outputs):
        head = self.config.timm_head
        if head["pooling"] in ("pooler_output", "summary"):
            return outputs[head["pooling"]]
        tokens = outputs.last_hidden_state
        if head["pooling"] == "class_token":
            return tokens[:, 0]
        if head["pooling"] == "mean_2d":
            return tokens.mean((2, 3))
        return tokens[:, head["first_patch"] :].mean(1)

    def forward(self, pixel_values=None, labels=None, output_attentions=None, output_hidden_states=None, **kwargs):
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {name: value for name, value in asked.items() if value is not None}
        outputs = self.base_model(pixel_values=pixel_values, **asked)
        features = self.pool(outputs)
        if self.config.timm_head["norm_eps"] is not None:
            features = self.head_norm(features)
        logits = self.classifier(features)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        hidden_states, attentions = (getattr(outputs, name, None) for name in ("hidden_states", "attentions"))
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)


def _with_timm_head(vision_model):
    """The classifier with this vision model; what the model's family can, such as attention backends, it can, too."""
    name = vision_model.__name__.removesuffix("Model") + "WithTimmHeadForImageClassification"
    attributes = {
        "__module__": __name__,
        "vision_model_class": vision_model,
        "config_class": vision_model.config_class,
        "base_model_prefix": vision_model.base_model_prefix,
    }
    return type(name, (_WithTimmHead, vision_model.__mro__[1]), attributes)


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
        _class = _with_timm_head(getattr(transformers, _name))
        _class.register_for_auto_class("AutoModelForImageClassification")  # so that it is saved with this file
        globals()[_class.__name__] = _class
