"""Prompts: the paper's words, the phrase file, and a language model that misbehaves."""
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stprompt import prompts as module
from stprompt.datasets import NORMAL, SHANGHAITECH, UBNORMAL_TYPES, UCF_CRIME, UCSD_PED2, XD_VIOLENCE
from stprompt.prompts import (
    ACTOR_QUERIES,
    NORMAL_QUERIES,
    PHRASES,
    LabelPrompts,
    PromptError,
    anomaly_queries,
    ask,
    check_phrases,
    load_phrases,
    plain_name,
    read_list,
    regenerate_phrases,
    write_phrases,
)

PAPER = (
    "a picture of sky, a picture of ground, a picture of road, a picture of grass, a picture of building, "
    "a picture of wall, a picture of tree, a picture of floor tile, "
    "a picture of desk, a picture of cabinet, a picture of chair, a picture of door, a picture of blank"
)


def test_the_papers_normal_queries_verbatim():
    assert ", ".join(NORMAL_QUERIES) == PAPER
    assert not set(ACTOR_QUERIES) & set(NORMAL_QUERIES)

@pytest.mark.parametrize(
    "classes",
    [
        UCF_CRIME,
        SHANGHAITECH,
        UBNORMAL_TYPES,
        XD_VIOLENCE,
        ["Fighting", "Falling", "Fire", "Explosion", "RoadAccident", "Shooting"],
    ],
)
def test_every_class_has_phrases(classes):
    for name in classes:
        if name != NORMAL:
            found = anomaly_queries(name)
            assert len(found) >= 5 and len(set(found)) == len(found), name
            assert not set(found) & set(NORMAL_QUERIES + ACTOR_QUERIES), (
                "an anomalous sentence is a normal one"
            )


def test_the_file_is_valid_and_no_two_classes_share_a_plain_name():
    doc = check_phrases(json.loads(PHRASES.read_text(encoding="utf-8")))
    names = [plain_name(n) for n in (*doc["phrases"], *doc["aliases"])]
    assert len(set(names)) == len(names)
    assert doc["template"] == module.TEMPLATE == "Provide phrases similar to [abnormal category]"

def test_queries_by_label_list_and_dict():
    assert anomaly_queries("Fire") == ["Fire", *load_phrases()["fire"]]
    assert anomaly_queries(["throwing_object"])[0] == "throwing object"
    assert anomaly_queries({"Normal": "normal", "x17": "robbery"})[1:] == list(
        load_phrases()["robbery"]
    )  # by its text
    assert anomaly_queries(["zorbing"]) == ["zorbing"]
    with pytest.raises(PromptError, match="expected texts"): anomaly_queries([3])

def test_ped2_asks_for_bicycles_and_not_for_violence():
    found = anomaly_queries(UCSD_PED2)
    assert (
        found[0] == UCSD_PED2["Abnormal"]
        and any("bicycle" in p for p in found)
        and any("skateboard" in p for p in found)
        and "a violent scene" not in found
    )
    assert "a violent scene" in anomaly_queries("Abnormal") and "a violent scene" in anomaly_queries(
        {"Abnormal": "abnormal"}
    )
    assert "someone tripping over" in anomaly_queries(
        {"fall": "falling"}
    )  # the label's own phrases otherwise


@pytest.mark.parametrize(
    "content, word",
    [
        ("{", "not JSON"),
        ("[]", "expected"),
        ('{"phrases": {"A": []}}', "'A'"),
        ('{"phrases": {"A": ["x"]}}', "'A'"),
        ('{"phrases": {"A": ["abc"]}, "aliases": {"b": "C"}}', "alias 'b'"),
        ('{"phrases": {"A": ["abc"]}, "aliases": ["b"]}', "aliases"),
    ],
)
def test_broken_phrase_files(tmp_path, content, word):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(PromptError, match=word): anomaly_queries("A", path)
    with pytest.raises(PromptError, match="no such phrase file"):
        anomaly_queries("A", tmp_path / "none.json")


def test_a_changed_file_is_read_again(tmp_path):
    path = write_phrases(tmp_path / "p.json", {"phrases": {"A": ["one thing"]}})
    assert anomaly_queries("A", path)[1:] == ["one thing"]
    time.sleep(0.01)
    write_phrases(path, {"phrases": {"A": ["two things"]}})
    assert anomaly_queries("A", path)[1:] == ["two things"]


def test_a_refused_write_leaves_the_old_file(tmp_path):
    path = write_phrases(tmp_path / "p.json", {"phrases": {"A": ["one thing"]}})
    with pytest.raises(PromptError): write_phrases(path, {"phrases": {"A": []}})
    assert anomaly_queries("A", path)[1:] == ["one thing"] and [p.name for p in tmp_path.iterdir()] == [
        "p.json"
    ]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_read_list_takes_any_answer(text):
    found = read_list(text, 4)
    assert len(found) <= 4 and all(3 <= len(p) <= 120 for p in found) and len(set(found)) == len(found)


# ---- the language model -------------------------------------------------------------------------------
@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        reply, status, seen = b"{}", 200, []
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Handler.seen.append((self.path, body, self.headers.get("Authorization")))
            self.send_response(Handler.status)
            self.send_header("Content-Length", str(len(Handler.reply)))
            self.end_headers()
            self.wfile.write(Handler.reply)

        def log_message(self, *_): pass
    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield Handler
    http.shutdown()
    http.server_close()


def say(text): return json.dumps({"choices": [{"message": {"content": text}}]}).encode()

def test_regenerate(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    server.reply = say("- a fire\n- two fires\n- three fires\n- four fires")
    path = regenerate_phrases(
        {"Normal": "normal", "Fire": "fire", "Arson": "arson"},
        tmp_path / "new" / "p.json",
        n=3,
        base_url=server.url + "/",
        model="m",
        key_variable="MY_KEY",
    )
    assert anomaly_queries("Arson", path) == ["Arson", "a fire", "two fires", "three fires"]
    assert [b["messages"][0]["content"].split(",")[0] for _, b, _ in server.seen] == [
        'Provide phrases similar to "fire"',
        'Provide phrases similar to "arson"',
    ]
    assert {p for p, _, _ in server.seen} == {"/v1/chat/completions"} and {k for *_, k in server.seen} == {
        "Bearer sesame"
    }
    assert "sesame" not in path.read_text()

@pytest.mark.parametrize(
    "reply, status, word",
    [
        (b"not json", 200, "no chat completion"),
        (b'{"error": 1}', 200, "no chat completion"),
        (b"[]", 200, "no chat completion"),
        (b"{}", 401, "401"),
        (b'{"choices": [{"message": {"content": null}}]}', 200, "without text"),
    ],
)
def test_a_server_that_fails(server, tmp_path, reply, status, word):
    server.reply, server.status = reply, status
    path = write_phrases(tmp_path / "p.json", {"phrases": {"A": ["one thing"]}})
    with pytest.raises(PromptError, match=word): regenerate_phrases(["A"], path, base_url=server.url)
    assert anomaly_queries("A", path)[1:] == ["one thing"]

def test_too_few_phrases_or_no_server(server, tmp_path):
    server.reply = say("sorry:\nno")
    with pytest.raises(PromptError, match="class 'A'"):
        regenerate_phrases(["A"], tmp_path / "p.json", base_url=server.url)
    with pytest.raises(PromptError, match="no answer"): ask("?", base_url="http://127.0.0.1:9/v1", timeout=2)
    with pytest.raises(PromptError, match="at least one anomaly class"):
        regenerate_phrases(["Normal"], tmp_path / "p.json", base_url=server.url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [b"hello\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", b""])
def test_a_server_that_speaks_no_http_or_hangs_up(answer):
    with socket.create_server(("127.0.0.1", 0)) as door:
        def reply():
            line, _ = door.accept()
            with line:
                line.recv(65536)
                line.sendall(answer)

        threading.Thread(target=reply, daemon=True).start()
        with pytest.raises(PromptError, match="no answer"):
            ask("?", base_url=f"http://127.0.0.1:{door.getsockname()[1]}/v1", timeout=5)


@pytest.mark.parametrize("url", ["", "localhost:1234/v1", "file:///tmp"])
def test_an_address_that_is_none(url):
    with pytest.raises(PromptError, match="base_url"): ask("?", base_url=url)


# ---- label prompts ------------------------------------------------------------------------------------
def test_label_prompts_hold_the_context_alone():
    prompts = LabelPrompts(["normal", "fire"], 16, length=4)
    assert {k: tuple(v.shape) for k, v in prompts.state_dict().items()} == {"context": (4, 16)}
    assert prompts.context.std() < .05 and prompts.texts == ("normal", "fire")

@pytest.mark.parametrize(
    "bad",
    [
        dict(texts="fire"),
        dict(texts=["normal"]),
        dict(texts=["normal", ""]),
        dict(texts=["normal", 3]),
        dict(texts=["a", "b"], length=0),
    ],
)
def test_bad_labels(bad):
    with pytest.raises(PromptError): LabelPrompts(**({"width": 8} | bad))
