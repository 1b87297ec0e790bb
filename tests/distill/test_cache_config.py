import pytest

from chopjax.distill.cache_config import CacheConfig, check_loss, check_vocab
from chopjax.distill.config import LossConfig, LossSchedule
from chopjax.errors import UserError


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "topk"}, "cache.kind is 'topk'; choose one of 'off', 'top_k', 'samples'"),
        ({"k": 0}, "cache.k is 0; give a value from 1 to 65535"),
        ({"samples": 65536}, "cache.samples is 65536"),
        ({"shard_rows": 0}, "cache.shard_rows is 0; give 1 or more"),
        ({"rows": "some"}, "cache.rows is 'some'"),
    ],
)
def test_bad_values_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        CacheConfig(**values)


def test_the_number_of_entries():
    assert CacheConfig(kind="top_k", k=16, samples=3).count == 16
    assert CacheConfig(kind="samples", k=16, samples=3).count == 3


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (LossConfig(jsd=0.5), "loss.jsd needs the whole distribution"),
        (LossConfig(schedules=(LossSchedule("reverse_kl", final=1.0),)), "loss.reverse_kl needs"),
        (LossConfig(schedules=(LossSchedule("temperature", final=2.0),)), "a cache is of one temperature"),
        (LossConfig(top_k=5), "loss.top_k is 5"),
    ],
)
def test_losses_that_no_cache_serves(loss, said):
    check_loss(CacheConfig(), loss)
    with pytest.raises(UserError, match=said):
        check_loss(CacheConfig(kind="samples"), loss)


def test_losses_that_a_cache_serves():
    loss = LossConfig(next_token=0.5, kl=0.5, z_loss=1e-4, schedules=(LossSchedule("kl", final=1.0),))
    check_loss(CacheConfig(kind="top_k"), loss)


def test_no_more_tokens_are_kept_than_there_are():
    for cache in (CacheConfig(kind="top_k", k=200), CacheConfig(kind="samples", samples=500), CacheConfig(k=500)):
        check_vocab(cache, 200)
    with pytest.raises(UserError, match="cache.k is 201, but the tokenizer has only 200 tokens; keep 200 or fewer"):
        check_vocab(CacheConfig(kind="top_k", k=201), 200)
