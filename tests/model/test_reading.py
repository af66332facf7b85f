"""Which tokens the objective reads: found from the structure, whatever the values are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cases
import tiny
from cases import batch_of, inputs_of, reading_of
from faster_pruner.data.batches import Batch
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.gradients import Observation, gradients
from faster_pruner.model.reading import Reading, Rule, find_reading, real_tokens
from faster_pruner.model.spec import Sublayer, resolve
from made_up import MADE_UP
from made_up_modules import GroupedLayer, OneStack

Values = Callable[[Any, Batch], Tensor]


def logits(returned: Any, batch: Batch) -> Tensor:
    return returned.logits


def last_token(returned: Any, batch: Batch) -> Tensor:
    """What is said of the last real token of each row."""
    mask = batch.inputs.get("decoder_attention_mask", batch.inputs["attention_mask"])
    places = torch.where(mask.bool(), torch.arange(mask.shape[1]), -1).amax(dim=1)
    return returned.hidden[torch.arange(mask.shape[0]), places]


def mean_of_real(returned: Any, batch: Batch) -> Tensor:
    mask = batch.inputs.get("decoder_attention_mask", batch.inputs["attention_mask"])
    return (returned.hidden * mask[:, :, None]).sum(dim=1)


def first_and_third(returned: Any, batch: Batch) -> Tensor:
    return returned.hidden[:, [0, 2]]


READOUTS: dict[str, tuple[Values, Rule]] = {
    "first": (logits, Rule.FIRST),
    "last": (last_token, Rule.LAST),
    "mean": (mean_of_real, Rule.EVERY),
    "some": (first_and_third, Rule.OTHER),
}


def read_by_values(model: nn.Module, sublayers: list[Sublayer], batch: Batch, values: Values) -> dict[str, Tensor]:
    """[B, S] per sublayer: the real tokens whose y has a gradient that is not zero, from random cotangents."""
    found: dict[str, Tensor] = {}

    def report(sublayer: Sublayer, seen: Observation) -> None:
        assert seen.y_gradient is not None
        found[sublayer.name] = seen.y_gradient.ne(0).any(dim=-1) & real_tokens(sublayer, batch, seen.x)

    with gradients(model, sublayers, report):
        start = values(model(**batch.inputs), batch)
        start.backward(torch.randn_like(start))
    return found


def tokens_by_rule(reading: Reading, sublayers: list[Sublayer], batch: Batch) -> dict[str, Tensor]:
    """[B, S] per sublayer: what a reading says of a batch."""
    found = reading.of(sublayers, batch)
    said: dict[str, Tensor] = {}
    with gradients(reading.model, sublayers, lambda s, seen: None, arrived=lambda s, x: said.update({s.name: x})):
        reading.model(**batch.inputs)
    return {s.name: reading.tokens_read(s, real_tokens(s, batch, said[s.name]), batch, found) for s in sublayers}


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", [n for n in cases.ONCE if n in MADE_UP])
def test_rules_say_what_gradients_say(name: str, readout: str) -> None:
    case, (values, rule) = cases.make(name), READOUTS[readout]
    reading = find_reading(case.model, case.sublayers, batch_of(inputs_of(name, rows=5)), reading_of(values))
    deepest = "text" if name == "towers" else case.sublayers[-1].stack.name
    assert reading.rules[[s.name for s in case.sublayers if s.stack.name == deepest][-1]] is rule
    for seed in (1, 2):
        batch = batch_of(inputs_of(name, seed=seed, rows=6, length=8))
        said = tokens_by_rule(reading, case.sublayers, batch)
        for key, read in read_by_values(case.model, case.sublayers, batch, values).items():
            assert not bool((read & ~said[key]).any())
            # what a causal mask hides by adding -inf has a path all the same
            exact = readout in ("last", "mean") or name in ("relative", "towers")
            assert not exact or torch.equal(said[key], read)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_a_classifier_reads_the_first_position_of_its_last_layer(family: str, attention: str) -> None:
    case = cases.make(family)
    case.model.set_attn_implementation(attention)
    reading = find_reading(case.model, case.sublayers, batch_of(inputs_of(family)), reading_of(logits))
    assert [reading.rules[s.name] for s in case.sublayers] == [Rule.EVERY] * 2 + [Rule.FIRST] * 2
    assert reading.order == [s.name for s in case.sublayers]
    assert reading.of(case.sublayers, batch_of(inputs_of(family))) is None


def test_order_and_positions_are_those_of_the_run() -> None:
    case = cases.make("towers")
    reading = find_reading(case.model, case.sublayers, batch_of(inputs_of("towers")), reading_of(logits))
    assert [s.stack.name for s in case.sublayers] == ["text"] * 4 + ["image"] * 2
    assert reading.order == [s.name for s in [*case.sublayers[4:], *case.sublayers[:4]]]
    assert reading.tokens == {"image": 4}


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_saturated_predictions_change_no_rule(family: str) -> None:
    case = cases.make(family)
    batch = batch_of(inputs_of(family))

    def sure(returned: Any, batch: Batch) -> Tensor:
        return (returned.logits * 1e4).softmax(dim=-1)

    gradients_seen = read_by_values(case.model, case.sublayers, batch, sure)
    assert not any(bool(read.any()) for read in gradients_seen.values())
    expected = find_reading(case.model, case.sublayers, batch, reading_of(logits)).rules
    assert find_reading(case.model, case.sublayers, batch, reading_of(sure)).rules == expected


@pytest.mark.parametrize("name", cases.NAMES)
def test_attention_that_looks_at_one_token_only_changes_no_rule(name: str) -> None:
    case = cases.make(name)
    batch, values = batch_of(inputs_of(name)), last_token if name in MADE_UP else logits
    expected = find_reading(case.model, case.sublayers, batch, reading_of(values)).rules
    seen = read_by_values(case.model, case.sublayers, batch, values)
    with torch.no_grad():
        for s in case.sublayers:
            if s.spec.mixes_tokens:
                for parameter in case.model.get_submodule(s.parts.producers[0].path).parameters():
                    parameter *= 1e4
    narrow = read_by_values(case.model, case.sublayers, batch, values)
    assert any(not torch.equal(read, seen[key]) for key, read in narrow.items())
    assert find_reading(case.model, case.sublayers, batch, reading_of(values)).rules == expected


def test_a_rectifier_that_lets_nothing_through_changes_no_rule() -> None:
    case = cases.make("distilbert")
    batch = batch_of(inputs_of("distilbert"))
    expected = find_reading(case.model, case.sublayers, batch, reading_of(logits)).rules
    with torch.no_grad():
        case.model.pre_classifier.bias.fill_(-1e4)
    assert find_reading(case.model, case.sublayers, batch, reading_of(logits)).rules == expected


def test_what_the_objective_never_reaches() -> None:
    case = cases.make("bert")
    batch = batch_of({**inputs_of("bert")})

    def rules(values: Values) -> list[Rule]:
        found = find_reading(case.model, case.sublayers, batch, reading_of(values)).rules
        return [found[s.name] for s in case.sublayers]

    case.model.config.output_hidden_states = True
    assert rules(lambda returned, _: returned.hidden_states[1][:, 0]) == [Rule.FIRST] * 2 + [Rule.NONE] * 2
    assert rules(lambda returned, _: returned.hidden_states[0][:, 0]) == [Rule.NONE] * 4
    # what is read of padding alone is not read
    padding = 1 - batch.inputs["attention_mask"]
    assert rules(lambda returned, _: returned.hidden_states[2] * padding[:, :, None])[2:] == [Rule.EVERY, Rule.EVERY]
    chosen = padding.bool()
    assert rules(lambda returned, _: returned.hidden_states[2][chosen])[3] is Rule.NONE


class Stopping(OneStack):
    """Runs its first layer only."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.returns(self.layers[0](self.embedding(input_ids), torch.zeros(1)))


class Repeating(OneStack):
    """Runs its first layer twice."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        x = self.layers[0](self.embedding(input_ids), torch.zeros(1))
        return self.returns(self.layers[0](x, torch.zeros(1)))


def test_a_sublayer_that_never_runs_is_said_so() -> None:
    model = cases.randomise(Stopping(layer=GroupedLayer))
    sublayers = resolve(model, MADE_UP["grouped"].family)
    reading = find_reading(model, sublayers, batch_of(inputs_of("grouped")), reading_of(logits))
    assert reading.order == ["layers.0.attention", "layers.0.ffn"]
    assert [reading.rules[s.name] for s in sublayers] == [Rule.FIRST] * 2 + [Rule.NEVER_RUNS] * 2


def test_a_sublayer_that_runs_twice_is_refused() -> None:
    model = cases.randomise(Repeating(layer=GroupedLayer))
    sublayers = resolve(model, MADE_UP["grouped"].family)
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.0\.attention runs more often in one forward than the 1 times"
    ):
        find_reading(model, sublayers, batch_of(inputs_of("grouped")), reading_of(logits))


def test_rows_padded_on_the_left() -> None:
    case = cases.make("grouped")
    inputs = {key: value.flip(1) for key, value in inputs_of("grouped").items()}
    rules = find_reading(case.model, case.sublayers, batch_of(inputs), reading_of(last_token)).rules
    assert [rules[s.name] for s in case.sublayers] == [Rule.EVERY] * 2 + [Rule.LAST] * 2
