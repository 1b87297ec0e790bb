"""Learning rates at the steps where something changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chopjax.errors import UserError
from chopjax.train.schedules import ScheduleConfig, make_schedule


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (ScheduleConfig("constant", 2.0, 10), {0: 2, 9: 2}),
        (ScheduleConfig("constant", 2.0, 10, warmup_steps=4), {0: 0.5, 1: 1, 3: 2, 4: 2, 9: 2}),
        (ScheduleConfig("constant", 2.0, 10, warmup_steps=1), {0: 2, 1: 2}),
        (ScheduleConfig("cosine", 2.0, 10, 0, 0.1), {0: 2, 5: 1.1, 10: 0.2, 50: 0.2}),
        (ScheduleConfig("cosine", 2.0, 11, 3, 0.5), {0: 2 / 3, 2: 2, 3: 2, 7: 1.5, 11: 1}),
        (ScheduleConfig("wsd", 2.0, 20, 2, 0.1, 0.25), {0: 1, 1: 2, 15: 2, 16: 1.64, 20: 0.2, 30: 0.2}),
        (ScheduleConfig("wsd", 2.0, 20, 0, 0.0, 1.0), {0: 2, 10: 1, 20: 0}),
        (ScheduleConfig("wsd", 2.0, 20, 0, 0.0, 0.0), {0: 2, 19: 2}),
        (ScheduleConfig("cosine", 2.0, 4, 4), {0: 0.5, 3: 2, 4: 2}),
    ],
)
def test_rates(config: ScheduleConfig, rates: dict[int, float]) -> None:
    schedule = make_schedule(config)
    traced = jax.jit(schedule)(jnp.asarray(list(rates), jnp.int32))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, list(rates.values()), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose([schedule(step) for step in rates], list(rates.values()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "step"}, "train.schedule is 'step'"),
        ({"steps": 0}, "train.steps"),
        ({"steps": 10, "warmup_steps": 11}, "leave only 10"),
        ({"kind": "wsd", "steps": 10, "warmup_steps": 6, "decay_fraction": 0.5}, "leave only 5"),
        ({"final_fraction": 1.5}, "train.final_fraction"),
        ({"learning_rate": -1.0}, "train.learning_rate"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScheduleConfig(**options)
