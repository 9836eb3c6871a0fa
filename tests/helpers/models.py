"""Tiny networks and batches of every kind that the meta gradient is tested on, in float64."""

import random
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from famus_hf.core.layers import Layer
from famus_hf.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification

CLASSES = 4


class GroupNormNet(nn.Module):
    """Two convolutions with group norm, dropout, and a classifier whose parameters belong to the root module."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.GroupNorm(2, 8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(2, 8)
        self.dropout = nn.Dropout(0.2)
        self.weight = nn.Parameter(torch.randn(CLASSES, 8) * 0.3)

    def forward(self, pixel_values, labels=None):
        hidden = torch.tanh(self.norm1(self.conv1(pixel_values)))
        hidden = self.dropout(torch.tanh(self.norm2(self.conv2(hidden))).mean((2, 3)))
        return SimpleNamespace(logits=hidden @ self.weight.t())


class CalledGroupNormNet(nn.Module):
    """The same with residual connection and a classifier that is a module of its own."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.GroupNorm(2, 8)
        self.norm2 = nn.GroupNorm(2, 8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, pixel_values, labels=None):
        hidden = torch.tanh(self.norm1(self.conv1(pixel_values)))
        hidden = self.shortcut(hidden) + self.conv2(torch.tanh(self.norm2(hidden)))
        return SimpleNamespace(logits=self.classifier(hidden.mean((2, 3))))


def build_model(kind, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    if kind == "batch norm":
        model = WideResNetForImageClassification(WideResNetConfig(depth=10, widen_factor=1, num_labels=CLASSES))
    elif kind == "group norm":
        model = GroupNormNet()
    elif kind == "called group norm":
        model = CalledGroupNormNet()
    elif kind == "vit":
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
            patch_size=4, num_labels=CLASSES, hidden_dropout_prob=0.1,
        )  # fmt: skip
        model = ViTForImageClassification(config)
    elif kind == "bert":
        config = BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, num_labels=CLASSES,
        )  # fmt: skip
        model = BertForSequenceClassification(config)
    for parameter in model.parameters():  # away from the symmetric start, where many gradients vanish
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).train()


def build_batch(kind, size=6, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    if kind == "bert":
        mask = torch.ones(size, 7, dtype=torch.long)
        mask[0, 4:] = 0
        return {
            "input_ids": torch.randint(40, (size, 7), generator=generator), "attention_mask": mask, "labels": labels
        }  # fmt: skip
    return {"pixel_values": torch.randn(size, 3, 8, 8, generator=generator, dtype=dtype), "labels": labels}


def layers_of_width(width, count):
    """Layers without parameters, for samplers alone."""
    return [Layer(f"layer {i}", (), width) for i in range(count)]


class TwoModels(nn.Module):
    """Two networks whose mean is the output."""

    def __init__(self, model_a, model_b):
        super().__init__()
        self.model_a, self.model_b = model_a, model_b

    def forward(self, pixel_values, labels=None):
        return SimpleNamespace(logits=(self.model_a(pixel_values).logits + self.model_b(pixel_values).logits) / 2)


WORDS = {"cold": "snow ice frost", "warm": "sun sand heat", "wet": "rain flood mist"}  # class → words that tell it
FILLERS = "the a and of with very quite rather"


def text_data(size, seed=0, pairs=False):
    """Sentences of which some words tell the class, as lists: `text`, perhaps `text_pair`, `label` as a name."""
    draw = random.Random(seed)
    names = [draw.choice(list(WORDS)) for _ in range(size)]
    fillers = FILLERS.split()

    def sentence(words):
        drawn = [*draw.choices(words, k=3), *draw.choices(fillers, k=draw.randrange(5))]
        draw.shuffle(drawn)
        return " ".join(drawn)

    told = [sentence(WORDS[name].split()) for name in names]
    if not pairs:
        return {"text": told, "label": names}
    return {"text": [sentence(fillers) for _ in names], "text_pair": told, "label": names}


def build_tokenizer(special="[UNK] [PAD] [CLS] [SEP]", cls=PreTrainedTokenizerFast):
    """Words by their number; with [CLS] and [SEP] around them as BERT has them, where these are among the specials."""
    words = [*special.split(), *FILLERS.split(), *" ".join(WORDS.values()).split()]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = Whitespace()
    names = {"unk_token": words[0]}
    if "[CLS]" in words:
        marks = [(mark, words.index(mark)) for mark in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", marks)
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        names |= {"eos_token": words[1]}
    return cls(tokenizer_object=tokenizer, **names)


def build_text_model(kind="bert", num_labels=3, **settings):
    """A tiny text classifier with random weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "num_labels": num_labels}
    if kind == "bert":
        config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                            max_position_embeddings=32, **sizes, **settings)  # fmt: skip
        return BertForSequenceClassification(config)
    if kind == "distilbert":
        config = DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32,
                                  **sizes, **settings)  # fmt: skip
        return DistilBertForSequenceClassification(config)
    if kind == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1,
                            **sizes, **settings)  # fmt: skip
        return GPT2ForSequenceClassification(config)
    config = BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
                        pad_token_id=1, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2, **sizes,
                        **settings)  # fmt: skip
    return BartForSequenceClassification(config)


def build_audio_model(kind="wav2vec2", num_labels=2, **settings):
    """A tiny classifier of recordings with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "ast":
        config = ASTConfig(max_length=32, num_mel_bins=16, patch_size=8, frequency_stride=8, time_stride=8,
                           num_labels=num_labels, **sizes, **settings)  # fmt: skip
        return ASTForAudioClassification(config)
    config = Wav2Vec2Config(conv_dim=(8, 8), conv_kernel=(8, 4), conv_stride=(4, 4), num_conv_pos_embeddings=4,
                            num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
                            mask_time_prob=0.3, mask_time_length=2, mask_time_min_masks=1, num_labels=num_labels,
                            **{"layerdrop": 0.0, **sizes, **settings})  # fmt: skip
    return Wav2Vec2ForSequenceClassification(config)


def build_text_network(kind, dtype=torch.float64):
    """A tiny network away from its start, in train mode, with dropout."""
    name = {"tied encoder and decoder": "bart", "frozen embeddings": "bert", "lora": "bert"}.get(kind, kind)
    model = build_text_model(name, **({"pad_token_id": 1} if name != "bart" else {}))
    if kind == "lora":
        from peft import LoraConfig, get_peft_model  # seconds, which the processes that tests start do not need

        model = get_peft_model(
            model, LoraConfig(target_modules=["query", "value"], r=2, modules_to_save=["classifier"])
        )
    if kind == "frozen embeddings":
        model.bert.embeddings.requires_grad_(False)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).train()


class PlainModule(torch.nn.Module):
    """A user's own network: logits, no loss, no config."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, CLASSES)

    def forward(self, pixel_values, labels=None):
        return {"logits": self.linear(pixel_values.mean((2, 3)))}
