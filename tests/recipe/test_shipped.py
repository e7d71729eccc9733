"""Every shipped recipe is planned from its teacher's published config, and its sizes are the paper's."""

import pytest
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from lowrank_clone import make_plan
from lowrank_clone.data.files import find_files
from lowrank_clone.recipe.load import load_recipe, shipped_recipes
from lowrank_clone.recipe.method import check_method

# The fields of the teachers' public config.json files that shapes depend on.
TEACHERS: dict[str, PretrainedConfig] = {
    "lrc-1.5b": LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=True,
        max_position_embeddings=131072,
        rope_theta=500000.0,
    ),
    "lrc-1.7b": Qwen2Config(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
    ),
    "lrc-4b": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
        max_position_embeddings=32768,
    ),
    "lrc-2.7b-b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
    ),
    "demo": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    ),
}
TEACHERS |= {name: TEACHERS["lrc-1.5b"] for name in ("red-1.5b", "dense-1.5b", "calibrated-1.5b", "lrc-1.5b-mix-1.0")}
# Billions of parameters: deployed, trained (LRC, arXiv 2505.12781, derived from its table of models).
PUBLISHED = {"lrc-1.5b": (1.61, 0.93), "lrc-1.7b": (1.81, 0.62), "lrc-4b": (4.35, 1.45)}


@pytest.mark.parametrize("name", shipped_recipes())
def test_recipe_plans(name: str) -> None:
    recipe = load_recipe(name)
    plan = make_plan(TEACHERS[name], recipe.student.hidden_size, recipe.student.overrides)
    check_method(plan, recipe.method)
    assert plan.taps
    if name in PUBLISHED:
        deployed, trained = PUBLISHED[name]
        assert plan.deployed_parameters / 1e9 == pytest.approx(deployed, rel=0.01)
        assert plan.trained_parameters / 1e9 == pytest.approx(trained, rel=0.01)


def test_every_recipe_has_its_teacher_here() -> None:
    assert set(TEACHERS) == set(shipped_recipes())


# Millions of tokens of each source (LRC, arXiv 2505.12781), and of the run.
EDU, HERMES = "HuggingFaceFW/fineweb-edu", "teknium/OpenHermes-2.5"
DCLM = "mlfoundations/dclm-baseline-1.0-parquet"
MIXES = {
    "lrc-1.5b": ({EDU: 10_000, HERMES: 450}, 10_000),
    "lrc-1.5b-mix-1.0": ({EDU: 10_000, HERMES: 450}, 10_000),
    "lrc-1.7b": ({EDU: 20_000, HERMES: 450}, 20_000),
    "lrc-4b": (
        {
            EDU: 18_000,
            "mlfoundations/dclm-baseline-1.0-parquet": 2_000,
            "HuggingFaceTB/smollm-corpus": 1_000,
            HERMES: 450,
        },
        18_000,
    ),
    "lrc-2.7b-b": ({"cerebras/SlimPajama-627B": 10_000}, 10_000),
}


@pytest.mark.parametrize("name", MIXES)
def test_mixes_are_the_paper_s(name: str) -> None:
    recipe = load_recipe(name)
    sources = {source.path: source for source in recipe.data.sources}
    tokens, run = MIXES[name]
    assert {path: source.tokens for path, source in sources.items()} == {p: n * 10**6 for p, n in tokens.items()}
    assert recipe.training.total_tokens == run * 10**6
    assert all(find_files(path) is None for path in sources)  # they are the Hub's
    if EDU in sources:
        chosen = {"int_score": {"min": 4}} if name != "lrc-1.5b-mix-1.0" else {}
        assert (sources[EDU].filter, sources[EDU].text_column) == (chosen, "text")
    if HERMES in sources:
        assert sources[HERMES].chat_column == "conversations"
    # Recipes that lie over another one take its mix.
    for other in ("red-1.5b", "dense-1.5b", "calibrated-1.5b"):
        assert load_recipe(other).data.sources == load_recipe("lrc-1.5b").data.sources
