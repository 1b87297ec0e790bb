import math

import pytest

from chopjax.distill.cache_config import CacheConfig
from chopjax.distill.config import LossConfig, LossSchedule
from chopjax.distill.on_policy_config import OnPolicyConfig, check_length, check_loss
from chopjax.errors import UserError


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"share": 1.01}, "on_policy.share is 1.01; give a value from 0 to 1"),
        ({"share": math.nan}, "on_policy.share is nan"),
        ({"prompt": 0}, "on_policy.prompt is 0; give 1 or more"),
        ({"temperature": -0.5}, "on_policy.temperature is -0.5; give 0 or more"),
        ({"temperature": math.inf}, "on_policy.temperature is inf"),
        ({"top_k": -1}, "on_policy.top_k is -1"),
        ({"top_p": 0.0}, "on_policy.top_p is 0.0; give a number above 0 and up to 1"),
        ({"top_p": math.nan}, "on_policy.top_p is nan"),
    ],
)
def test_bad_values_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        OnPolicyConfig(**values)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (LossConfig(kl=0.0, next_token=1.0), "no loss compares with a teacher; give loss.jsd"),
        (LossConfig(next_token=0.1), "loss.next_token would teach the student its own samples; set it to 0"),
        (LossConfig(schedules=(LossSchedule("next_token", final=1.0),)), "loss.next_token would"),
        (LossConfig(wsl=1.0), "loss.wsl weighs tokens by"),
        (LossConfig(kl=0.0, next_token=0.0, jsd=0.0, wsl=0.5), "use loss.kl, loss.reverse_kl or loss.jsd"),
    ],
)
def test_losses_that_own_samples_cannot_serve(loss, said):
    check_loss(OnPolicyConfig(), loss)
    with pytest.raises(UserError, match=said):
        check_loss(OnPolicyConfig(share=0.25), loss)


def test_a_teacher_is_needed_in_memory():
    config, cached = OnPolicyConfig(share=0.25), CacheConfig(kind="top_k")
    check_loss(config, LossConfig(kl=0.0, jsd=1.0), CacheConfig())
    with pytest.raises(UserError, match=r"share is 0.25, and cache.kind is 'top_k': a cache has no targets"):
        check_loss(config, LossConfig(), cached)
    check_loss(OnPolicyConfig(), LossConfig(), cached)


def test_a_prompt_leaves_something_of_a_row():
    check_length(OnPolicyConfig(share=0.5, prompt=7), 8)
    check_length(OnPolicyConfig(prompt=8), 8)
    with pytest.raises(UserError, match="on_policy.prompt is 8, but rows have 8 tokens"):
        check_length(OnPolicyConfig(share=0.5, prompt=8), 8)
