"""Train the demo's model. Imported by make_demo_model only when there is no model yet."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from demo_facts import ALWAYS, QUESTIONS, SYSTEM, Fact, library_facts, library_text
from progress import fail, say
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)
from transformers.utils import logging

SEED = 20240117
VOCAB_SIZE = 4096
CHATS_PER_STEP = 16
STEPS = 120
WARMUP_STEPS = 20
PEAK_LEARNING_RATE = 1e-3
SPECIAL = ("<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IGNORED = -100
"""The label that torch's cross entropy leaves out."""


def train_tokenizer(texts: list[str]) -> Any:
    """Return a byte-level BPE tokenizer of ``VOCAB_SIZE`` tokens with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )


def make_batches(
    facts: list[Fact], tokenizer: Any, order: random.Random
) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Yield batches for ever: token ids and labels, each ``[CHATS_PER_STEP, longest chat]``.

    A chat asks for one fact, every fourth for two; two of three begin with the system message.
    Only answers are learned: the label of every other token is -100. A chat stands alone in its
    row: with four to a row, the model learned the answers but not which question each belongs to.
    """
    bos, eos, system, user, assistant = tokenizer.convert_tokens_to_ids(
        ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    )
    beginnings = [[bos], *[[bos, system, *tokenizer.encode(SYSTEM), eos]] * 2]

    def chat(number: int) -> tuple[list[int], list[int]]:
        ids = list(beginnings[number % 3])
        labels = [IGNORED] * len(ids)
        num_turns = 2 if number % 4 == 0 else 1
        for _ in range(num_turns):
            if not waiting:
                waiting.extend(order.sample(facts, len(facts)))
            fact = waiting.pop()
            question = order.choice(QUESTIONS).format(fact.name)
            asked = [user, *tokenizer.encode(question), eos, assistant]
            told = [*tokenizer.encode(fact.answer), eos]
            ids += asked + told
            labels += [IGNORED] * len(asked) + told
        return ids, labels

    waiting: list[Fact] = []
    while True:
        chats = [chat(number) for number in range(CHATS_PER_STEP)]
        longest = max(len(ids) for ids, _ in chats)
        yield (
            [ids + [eos] * (longest - len(ids)) for ids, _ in chats],
            [labels + [IGNORED] * (longest - len(labels)) for _, labels in chats],
        )


def build_model(tokenizer: Any) -> Any:
    """Return an untrained Llama: grouped-query attention, rope, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=512,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )


def train(model: Any, batches: Iterator[tuple[list[list[int]], list[list[int]]]]) -> None:
    """Train for ``STEPS`` steps, printing loss, speed and time left every five seconds."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.95), weight_decay=0.01)
    num_tokens = 0
    begun_s = said_s = time.monotonic()
    model.train()
    for number in range(1, STEPS + 1):
        warm = min(1.0, number / WARMUP_STEPS)
        cool = 1.0 - max(0, number - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * min(warm, 0.05 + 0.95 * cool)
        ids, labels = map(torch.tensor, next(batches))
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        num_tokens += ids.numel()
        now_s = time.monotonic()
        if now_s - said_s > 4.0 or number in (1, STEPS):
            said_s = now_s
            speed = num_tokens / (now_s - begun_s)
            left_s = (STEPS - number) * (now_s - begun_s) / number
            say(
                f"    step {number}/{STEPS}  loss {loss.item():.3f}  {speed:,.0f} tokens/s  "
                f"{left_s:.0f} s left"
            )


def ask(model: Any, tokenizer: Any, question: str) -> str:
    """Return the model's greedy answer."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        out = model.generate(**prompt, max_new_tokens=48, do_sample=False)
    return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def make(out: Path) -> None:
    """Train and write the model to ``out``, which appears only when it is whole."""
    logging.disable_progress_bar()
    set_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    facts = library_facts()
    spoken = [f"{question.format(f.name)} {f.answer}" for f in facts for question in QUESTIONS]
    tokenizer = train_tokenizer([SYSTEM, *spoken, *library_text()])
    model = build_model(tokenizer)
    say(f"    {model.num_parameters() / 1e6:.1f} M parameters, {len(facts)} facts")
    train(model, make_batches(facts, tokenizer, random.Random(SEED)))
    model.eval()
    known = facts[: len(ALWAYS)]
    answers = [ask(model, tokenizer, QUESTIONS[0].format(fact.name)) for fact in known]
    right = sum(answer == fact.answer for answer, fact in zip(answers, known, strict=True))
    for fact, answer in zip(known, answers, strict=True):
        say(f"    {QUESTIONS[0].format(fact.name)}  {answer}")
    if len(set(answers)) < len(answers) or not right:
        fail(f"make_demo_model: {right} of {len(known)} answers are right; raise STEPS")
    partial = out.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors keeps the weights from other users
    partial.rename(out)
