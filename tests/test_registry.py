import itertools
import json

import jax
import pytest
from helpers import small

import jaxprune
from jaxprune.amounts import Merges, Saving
from jaxprune.config import ModelConfig
from jaxprune.models import abstract
from jaxprune.reduction.merging import schedule
from jaxprune.registry import METHODS, by_name, reduced
from jaxprune.training.pruning import Prune
from jaxprune.training.schedules import compilations, stages_at

MODELS = {family: abstract(small(family, width=24)) for family in ("ast", "audiomae")}
MODEL = MODELS["audiomae"]


def saved(model, policy) -> float:
    return 1 - jaxprune.macs(model, policy) / jaxprune.macs(model, jaxprune.topk(model, {}))


@pytest.mark.parametrize("saving", [0.15, 0.3, 0.45, 0.6])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", MODELS)
def test_every_method_is_found_by_the_cost_that_it_saves(family, method, saving):
    model = MODELS[family]
    assert saved(model, reduced(model, method, saving=saving)) == pytest.approx(saving, abs=0.01)


@pytest.mark.parametrize("method", ["tome", "tome-plain", "pool"])
@pytest.mark.parametrize("rate", [1.0, 0.9, 0.7, 0.5])
def test_methods_without_a_keep_rate_cost_as_much_as_top_k_at_it(method, rate):
    as_top_k = saved(MODEL, jaxprune.topk(MODEL, rate))
    assert saved(MODEL, reduced(MODEL, method, rate)) == pytest.approx(as_top_k, abs=0.01)


def test_merging_without_proportional_attention_has_a_name():
    for amount, asked in ((Merges(2), {"r": 2}), (Saving(0.3), {"saving": 0.3})):
        named, plain = reduced(MODEL, "tome-plain", amount), jaxprune.tome(MODEL, **asked, proportional=False)
        assert (
            jax.tree.structure(named) == jax.tree.structure(plain) != jax.tree.structure(jaxprune.tome(MODEL, **asked))
        )
    shared = stages_at(0.7, Prune(method="tome-plain", keep_rate=0.5, shrink_epochs=1), config=MODEL.config, patches=64)
    assert not any(merge.proportional for merge in shared.values())


def test_a_saving_is_spread_evenly_over_the_blocks():
    counts = [merge.r for merge in jaxprune.tome(MODEL, saving=0.35).stages.values()]
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if method.between))
@pytest.mark.parametrize("patches", [64, 40])
def test_a_falling_rate_compiles_few_sizes_which_hold_every_count(method, patches):
    prune = Prune(method=method, keep_rate=0.5, shrink_epochs=1)
    rates = [1 - 0.5 * i / 40 for i in range(41)]
    assert compilations(rates, prune, config=MODEL.config, patches=patches) <= 9
    found = {rate: stages_at(rate, prune, config=MODEL.config, patches=patches) for rate in rates}
    for rate, stages in found.items():
        own = METHODS[method].exact(MODEL.config, dict.fromkeys(prune.blocks, rate), patches)
        wide = narrow = patches
        for block in sorted(stages):
            wide, narrow = stages[block].size(wide), own[block].size(narrow)
            assert narrow <= wide <= patches + 3


def test_falling_rates_merge_ever_more():
    prune = Prune(method="tome", keep_rate=0.5, shrink_epochs=1)
    totals = []
    for i in range(1, 40):
        stages = stages_at(1 - 0.5 * i / 40, prune, config=MODEL.config, patches=64)
        assert all(int(merge.r) <= merge.most for merge in stages.values())
        totals.append(sum(int(merge.r) for merge in stages.values()))
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


@pytest.mark.parametrize("patches", [64, 40])
def test_a_hybrids_shared_sizes_hold_what_is_alive_however_merges_round(patches):
    """Its merges do not always rise as the rate falls; then they are those of an end of the slice."""
    prune = Prune(method="hybrid", keep_rate=0.5, shrink_epochs=1)
    differs = 0
    for i in range(1, 200):
        rate = 1 - 0.5 * i / 200
        stages = stages_at(rate, prune, config=MODEL.config, patches=patches)
        own = METHODS["hybrid"].exact(MODEL.config, dict.fromkeys(prune.blocks, rate), patches)
        alive = capacity = patches
        for block, stage in stages.items():
            merge = getattr(stage, "rest", stage)
            if block in prune.blocks:
                alive, capacity = int(stage.stage.count), stage.stage.capacity
                assert alive <= capacity
            assert int(merge.r) <= merge.most
            alive, capacity = alive - min(int(merge.r), alive // 2), merge.size(capacity)
            assert 0 < alive <= capacity
            differs += int(merge.r) != getattr(own[block], "rest", own[block]).r
    assert differs < 0.05 * 199 * MODEL.config.depth


def test_the_matching_and_the_sums_of_merging_are_counted():
    """As the words of ToMe's paper have it: every even token with every odd one, over the channels of a head."""
    config, r = MODEL.config, 6
    kept = {block: 64 - r * (block + 1) for block in range(9)} | dict.fromkeys(range(9, 12), 10)
    counts = [64, *kept.values()]
    plain = jaxprune.cost.macs_of_counts(config, kept)
    matching = sum((n + 1 + 1) // 2 * ((n + 1) // 2) * 8 + r * (n + 1 - r) * 24 for n in counts[:9])
    assert jaxprune.macs(MODEL, jaxprune.tome(MODEL, [r] * 9)) == plain + matching


@pytest.mark.parametrize(
    ("r", "depth", "expected"),
    [
        ((16, -1), 12, [32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0]),
        ((13, -1), 12, [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]),
        ((8, -1), 12, [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]),
        ((5, -1), 12, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]),
        ((4, 1), 12, [0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8]),
        ((7, 0.25), 12, [5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 9]),
        (3, 4, [3, 3, 3, 3]),
        ([5, 1], 4, [5, 1, 0, 0]),
        ((6, -1), 1, [12]),
    ],
    ids=str,
)
def test_a_schedule_of_merges_is_counted_as_the_original_counts(r, depth, expected):
    assert list(schedule(r, depth=depth)) == expected


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: jaxprune.tome(MODEL, 33), "r is 33, but a block can merge at most half of its tokens, 32"),
        (lambda: jaxprune.tome(MODEL, -1), "r is -1; it must be a whole number of tokens, 0 or more"),
        (lambda: jaxprune.tome(MODEL, True), "r is True; it must be a whole number"),
        (lambda: jaxprune.tome(MODEL, [1] * 13), "r has 13 numbers, but the model has 12 blocks"),
        (lambda: jaxprune.tome(MODEL, (4, 2)), "the inflection is 2; it must be from -1"),
        (lambda: jaxprune.tome(MODEL), "either r, the tokens that leave each block, or a saving"),
        (lambda: jaxprune.tome(MODEL, 4, saving=0.1), "either r, the tokens that leave each block, or a saving"),
        (lambda: jaxprune.tome(MODEL, saving=0.99), "a saving of 0.99 cannot be had this way"),
        (lambda: jaxprune.tome(MODEL, saving=1.2), "saving is 1.2; it must be a share of the cost"),
        (lambda: jaxprune.evit(MODEL, 1.2), "keep rate 1.2 is not allowed"),
        (lambda: jaxprune.pool(MODEL, (3, 3)), r"the blocks are \[3, 3\]; name each once"),
        (lambda: jaxprune.pool(MODEL, (12,)), "the model's blocks are 0 to 11"),
        (lambda: jaxprune.pool(MODEL, (1,), saving=0.2), "blocks and a saving; choose one"),
        (lambda: by_name("poll"), "there is no method 'poll'; choose among topk, evit"),
        (lambda: reduced(MODEL, "topk"), "either keep rates or a saving"),
        (lambda: jaxprune.evit(MODEL, 0.5) | jaxprune.tome(MODEL, 4), "only pruning can go before another"),
        (lambda: jaxprune.topk(MODEL, 0.5) | jaxprune.evit(MODEL, 0.5), "rank by ReceivedAttention and ClsAttention"),
        (lambda: Prune(method="pool", shrink_epochs=3), "pool cannot follow a keep rate that moves"),
        (lambda: Prune(method="pool", sample=("0.5-1",)), "pool cannot follow a keep rate that moves"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(ask, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_pooling_may_be_trained_at_rates_that_are_compiled_exactly():
    assert Prune(method="pool", keep_rate=0.7).method == "pool"
    assert Prune(method="pool", sample=("1", "0.7")).method == "pool"


def test_policies_of_all_methods_are_told_apart_by_jit():
    policies = [reduced(MODEL, method, rate) for method, rate in itertools.product(METHODS, (0.5, 0.7))]
    policies += [jaxprune.topk(MODEL, 0.5) | jaxprune.tome(MODEL, 2), jaxprune.tome(MODEL, 2, proportional=False)]
    structures = [jax.tree.structure(policy) for policy in policies]
    assert len(set(structures)) == len(structures)


def test_a_recipe_from_before_there_were_methods_prunes_by_top_k():
    from jaxprune.training.recipes import recipe
    from jaxprune.training.settings import Recipe

    plain = json.loads(json.dumps(recipe("ast-esc50").to_json()))
    del plain["prune"]["method"]
    assert Recipe.from_json(plain).prune.method == "topk"


def test_a_model_of_another_depth_and_size_has_savings_too():
    model = abstract(ModelConfig.of_size("audiomae", "large", classes=10, frames=512))
    assert saved(model, jaxprune.tome(model, saving=0.35)) == pytest.approx(0.35, abs=0.005)
