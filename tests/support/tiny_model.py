"""A Llama of 12 MB in float32 with a byte tokenizer, whose greedy output depends on the prompt.

Default initialisation makes a model that repeats one token whatever it is asked, and then every
comparison passes. These scales make outputs as different as the prompts. In float32 the tokens
do not depend on what else is in the batch.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = "{% for m in messages %}{{m['role']}}: {{m['content']}}\n{% endfor %}assistant:"


def make(folder: str, **changes: Any) -> None:
    """Write the model and its tokenizer into ``folder``, unless they are there.

    ``changes`` are settings of the model's configuration that are to differ.
    """
    if (Path(folder) / "tokenizer.json").exists():
        return
    torch.manual_seed(1234)
    settings = {
        "vocab_size": 264,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(**{"model_type": "llama", **settings, **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, _scale(name))
    model.to(torch.float32).save_pretrained(folder)
    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **special
    )
    fast.save_pretrained(folder)


def _scale(name: str) -> float:
    if "embed" in name:
        return 1.0
    if "lm_head" in name:
        return 0.25
    return 0.16 if "q_proj" in name or "k_proj" in name else 0.08
