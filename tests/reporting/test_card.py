"""The model card of an exported model."""

import json
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from shortened_llm.pruning.plan import chosen_plan
from shortened_llm.records import LoraOptions, ModelSize, Provenance, SourceFacts, WidthsTransform
from shortened_llm.reporting.card import adapter_cards, is_non_commercial, plan_card, trial_cards
from tests.reporting.experiments import BOS_FIRST, SMALL_CUT, experiment, plan, recipe, texts, trial

PROVENANCE = Provenance(
    base_model="meta-llama/Llama-3.1-8B",
    on_hub=True,
    base_license="llama3.1",
    sources=(
        SourceFacts(name="wiki", path="wiki.jsonl", role="calibration", license=None),
        SourceFacts(name="c4", path="allenai/c4", role="training", license="odc-by"),
        SourceFacts(name="alpaca", path="alpaca.jsonl", role="instructions", license="cc-by-nc-4.0"),
    ),
    dtype="bfloat16",
)


def test_a_card_says_what_the_model_is_and_how_it_scores() -> None:
    cards = trial_cards(replace(experiment(), provenance=PROVENANCE))
    done = [trial for trial in experiment().trials if trial.result and not trial.result.model.transforms]
    assert set(cards) == {trial.result.model.url for trial in done if trial.result}
    url = next(trial.result.model.url for trial in done if trial.result and trial.spec.fingerprint == "f2")
    text = cards[url]["README.md"]
    card = ModelCard(text)
    assert card.data.base_model == "meta-llama/Llama-3.1-8B"
    assert card.data.license == "llama3.1"
    assert card.data.library_name == "transformers"
    assert "Llama-3.1-8B with 24 of 30 blocks" in text
    assert "9, 11, 13, 17, 20, 24" in text
    (line,) = [line for line in text.splitlines() if "perplexity on wikitext2" in line]
    cells = [cell.strip() for cell in line.split("|")[1:6]]
    assert cells == ["perplexity on wikitext2", f"report: {BOS_FIRST}", "25.31", "91.07", "34.55"]
    assert any("piqa acc" in line and "0.612" in line and "0.689" in line for line in text.splitlines())
    assert "| training | `allenai/c4` | odc-by |" in text
    assert "alpaca" not in text, "this trial did not train on it"
    assert "Scored on the calibration text `wiki`" in text
    assert "| calibration | `wiki.jsonl` | not stated |" in text
    assert "commercial" not in text
    facts = json.loads(cards[url]["pruning.json"])
    assert facts["removed_blocks"] == list(SMALL_CUT)
    assert facts["recipes"][0]["learning_rate"] == 3e-4


def test_data_for_non_commercial_use_is_stamped() -> None:
    full = experiment()
    spec = full.trials[0].spec
    taught = replace(spec, recipes=(replace(spec.recipes[0], method="lora", train_on="instructions"),))
    trial = replace(full.trials[0], spec=taught)
    (card,) = trial_cards(replace(full, trials=(trial,), provenance=PROVENANCE)).values()
    assert "Not for commercial use" in card["README.md"]
    assert "cc-by-nc-4.0 (non-commercial)" in card["README.md"]
    assert "allenai/c4" not in card["README.md"]
    # The hub shows what the front matter says.
    front = ModelCard(card["README.md"]).data
    assert (front.license, front.license_name) == ("other", "non-commercial-sources")
    for_programs = json.loads(card["pruning.json"])
    assert for_programs["base_license"] == PROVENANCE.base_license
    assert "cc-by-nc-4.0" in [source["license"] for source in for_programs["sources"]]


def test_a_plan_made_by_hand_claims_no_criterion() -> None:
    size = ModelSize(block_parameters=(10,) * 8, other_parameters=20, bytes_per_parameter=4)
    card = plan_card(chosen_plan((2, 3), size), replace(PROVENANCE, dtype="float32"))
    text = card["README.md"]
    assert "The blocks were named by hand." in text
    assert "fewer than its base, stored in float32." in text
    assert "Chosen by" not in text
    assert "calibration" not in text
    facts = json.loads(card["pruning.json"])
    (label,) = facts["labels"]
    assert (label["criterion"], label["target"], facts["dtype"]) == (
        "chosen", {"of": "blocks", "ratio": 0.25}, "float32",
    )  # fmt: skip
    assert "wiki" not in [source["name"] for source in facts["sources"]]


def test_adapters_say_what_they_belong_to() -> None:
    lora = LoraOptions(rank=8, alpha=16.0, dropout=0.0, target_modules=("q_proj",))
    taught = replace(recipe("lora", instructions=True), lora=lora)
    done = trial("f7", plan(SMALL_CUT, ("ppl", 0.2)), after=texts(wiki=30.0), recipes=(recipe("cpt"), taught))
    assert done.result is not None
    first, _ = done.result.runs
    adapter = replace(first.model, url="s3://bucket/adapter")
    second = replace(first, adapter=adapter, model=replace(first.model, url="s3://bucket/merged"))
    for runs, recipes, base in (
        ((first, second), done.spec.recipes, f"`BASE` is `{first.model.url}`"),
        ((second,), done.spec.recipes[1:], "--output OUTPUT --remove 9,11,13,17,20,24`"),
    ):
        cards = adapter_cards(replace(done.spec, recipes=recipes), done.plan, runs, PROVENANCE)
        assert list(cards) == ["s3://bucket/adapter"]
        text = cards["s3://bucket/adapter"]
        assert ModelCard(text).data.library_name == "peft"
        assert "`meta-llama/Llama-3.1-8B` without its blocks 9, 11, 13, 17, 20, 24" in text
        assert base in text
        assert "merged is `s3://bucket/merged`" in text
        assert "rank 8, alpha 16.0" in text
        assert "`alpaca.jsonl` (cc-by-nc-4.0)" in text
        assert "Not for commercial use" in text


def test_adapters_of_a_narrower_model_do_not_belong_to_the_dense_one() -> None:
    lora = LoraOptions(rank=8, alpha=16.0, dropout=0.0, target_modules=("q_proj",))
    cut = plan((), ("flap", 0.2))
    widths = WidthsTransform.keeping(
        num_groups=3, num_channels=1536, groups={}, channels={block: range(1200) for block in range(cut.dense.blocks)}
    )
    cut = replace(cut, transforms=(widths,))
    done = trial("f7", cut, after=texts(wiki=30.0), recipes=(replace(recipe("lora"), lora=lora),))
    assert done.result is not None
    (only,) = done.result.runs
    adapter = replace(only.model, url="s3://bucket/adapter")
    (text,) = adapter_cards(done.spec, cut, (replace(only, adapter=adapter),), PROVENANCE).values()
    assert "1200 of 1536 channels kept" in text
    assert "without its blocks" not in text
    assert "`BASE` is what `python -m jobs.prune CONFIG.yaml --output OUTPUT` writes for this plan." in text


def test_a_control_leaves_its_candidates_card() -> None:
    done = trial("f7", plan(SMALL_CUT, ("ppl", 0.2)), after=texts(wiki=30.0))
    drawn = replace(done.spec.plan, labels=plan(SMALL_CUT, ("random", 0.2)).labels)
    control = replace(done, spec=replace(done.spec, control="random", plan=drawn))
    (card,) = trial_cards(replace(experiment(), trials=(done, control))).values()
    assert "Chosen by `ppl`" in card["README.md"]


HOSTILE = "a|b <script>x</script>"


def test_names_stay_text_and_cells_stay_in_their_column() -> None:
    scores = texts(HOSTILE, **{HOSTILE: 30.0})
    full = experiment()
    done = trial("h", plan(SMALL_CUT, (HOSTILE, 0.2)), before=scores, after=scores, report_after=scores)
    source = SourceFacts(name=HOSTILE, path=HOSTILE, role="training", license=HOSTILE)
    told = replace(PROVENANCE, base_model=HOSTILE, base_license=HOSTILE, sources=(source,))
    dense = {"dense_selection": scores, "dense_report": scores}
    (card,) = trial_cards(replace(full, trials=(done,), provenance=told, **dense)).values()  # type: ignore[arg-type]
    text = ModelCard(card["README.md"]).text
    assert not re.search(r"(?<!\\)<script>", re.sub(r"`[^`\n]*`", "", text))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table if line}) == 1, table


@pytest.mark.parametrize(("name", "on_hub", "expected"), [("gpt2", True, "gpt2"), ("models/my-local", False, None)])
def test_a_base_model_is_stated_where_it_is_one_of_the_hub(name: str, on_hub: bool, expected: str | None) -> None:
    told = replace(PROVENANCE, base_model=name, on_hub=on_hub)
    card = plan_card(plan(SMALL_CUT, ("ppl", 0.2)), told)["README.md"]
    assert ModelCard(card).data.base_model == expected


def test_calibration_text_is_named_where_a_criterion_read_it() -> None:
    cards = [plan_card(plan(SMALL_CUT, (name, 0.2)), PROVENANCE)["README.md"] for name in ("taylor", "magnitude")]
    assert ["wiki.jsonl" in card for card in cards] == [True, False]


@pytest.mark.parametrize("unit", ["weight", "width"])
def test_shares_and_refits_read_the_calibration_text_too(unit: str) -> None:
    """Whatever their criterion is: what they read is stated, with its licence, rather once too often."""
    sources = (replace(PROVENANCE.sources[0], license="cc-by-nc-4.0"),)
    one = plan(SMALL_CUT, ("magnitude", 0.2))
    one = replace(one, labels=tuple(replace(label, unit=unit) for label in one.labels))
    assert "cc-by-nc-4.0" in plan_card(one, replace(PROVENANCE, sources=sources))["README.md"]


def test_of_several_calibration_texts_the_card_names_those_of_its_rankings() -> None:
    wiki = PROVENANCE.sources[0]
    sources = (wiki, replace(wiki, name="news", license="cc-by-nc-4.0"), replace(wiki, name="news-clean"))
    one = plan(SMALL_CUT, ("ppl", 0.2))

    def named(calibration: str | None) -> set[str]:
        labelled = replace(one, labels=tuple(replace(label, calibration=calibration) for label in one.labels))
        facts = json.loads(plan_card(labelled, replace(PROVENANCE, sources=sources))["pruning.json"])
        return {source["name"] for source in facts["sources"]}

    assert named("news-clean") == {"news-clean"}
    assert named("news seed 1") == {"news"}
    assert named("seed 1") == {"wiki", "news", "news-clean"}
    assert named(None) == set()


def test_a_plan_alone_has_a_card_too() -> None:
    local = replace(PROVENANCE, base_model="/models/my-model/", on_hub=False, base_license=None)
    card = plan_card(plan(SMALL_CUT, ("ppl", 0.2)), local)
    assert ModelCard(card["README.md"]).data.base_model is None, "the hub takes ids only"
    assert "my-model with 24 of 30 blocks" in card["README.md"]
    assert "not retrained" in card["README.md"]
    assert "not known" in card["README.md"]
    assert json.loads(card["pruning.json"])["kept_blocks"][0] == 0


@pytest.mark.parametrize(
    ("license", "expected"),
    [("cc-by-nc-4.0", True), ("CC-BY-NC-SA-3.0", True), ("research-only", True), ("apache-2.0", False),
     ("cc-by-sa-3.0", False), ("llama3.1", False), (None, False)],
)  # fmt: skip
def test_names_of_non_commercial_licences(license: str | None, expected: bool) -> None:
    assert is_non_commercial(license) is expected
